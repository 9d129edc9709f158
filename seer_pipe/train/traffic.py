"""What the ranks of a run send each other in a step, collective by collective, from the recipe alone.

Counted as torch calls them, in the steady state with nothing logged.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from seer_pipe import config as settings
from seer_pipe.distributed.traffic import FLOAT, Collectives
from seer_pipe.models import Trunk
from seer_pipe.objectives.base import Network
from seer_pipe.train.build import checkpointed, outline, parameter_groups
from seer_pipe.train.engines import check_engine, engine_of
from seer_pipe.train.syncbn import groups

GPUS_OF_A_NODE = 8  # for train.shard_within: node
IMAGES = 2  # of an outlined forward: BatchNorm needs two


class Call(NamedTuple):
    """A forward of a module within one of the network."""

    shape: torch.Size  # of its input
    gradient: bool  # False in momentum copies


Calls = Mapping[nn.Module, list[Call]]


class Outlined(NamedTuple):
    """A recipe's network on the meta device, and how often each module runs in a forward of it on `IMAGES` images."""

    network: Network
    runs: Calls


def outlined(config: settings.Config) -> Outlined:
    """It takes as long as a forward of all layers in Python: what asks for several numbers passes it on."""
    network = outline(config)
    found: dict[nn.Module, list[Call]] = defaultdict(list)

    def note(module: nn.Module, inputs: Any) -> None:
        found[module].append(Call(inputs[0].shape, torch.is_grad_enabled()))

    kinds = (Trunk, _BatchNorm)
    watched = [*network.units(), *(module for module in network.modules() if isinstance(module, kinds))]
    hooks = [module.register_forward_pre_hook(note) for module in watched]
    network([torch.empty(IMAGES, *shape, device="meta") for shape in config.views.shapes])
    for hook in hooks:
        hook.remove()
    return Outlined(network, found)


def traffic(config: settings.Config, gpus: int, meta: Outlined | None = None) -> list[Collectives]:
    """All collectives of a step on so many GPUs; none for one. UserError where train.sync_bn or train.parallel does not
    fit them."""
    ranks, _ = groups(config.train, gpus)
    if gpus == 1:
        return []
    check_engine(config.train, gpus)
    network, runs = meta or outlined(config)
    found = [
        *config.objective.collectives(config.views, config.train.batch, gpus),
        Collectives("agreement", "all_reduce", gpus, 1, 3 * FLOAT),
    ]
    if config.optimizer.clip_norm is not None:
        found.append(Collectives("norm of the gradient", "all_reduce", gpus, 1, FLOAT))
    if ranks > 1:
        found += _batch_norm(config, network, runs, ranks)
    return found + SENT[engine_of(config.train.parallel, gpus)](config, network, runs, gpus)


def shard_ranks(config: settings.Config, gpus: int) -> int:
    """Over how many ranks FSDP2 shards."""
    within = config.train.shard_within
    return gpus if within is None else GPUS_OF_A_NODE if within == "node" else within


def resolutions(config: settings.Config) -> int:
    """How often the trunk runs in a step."""
    return len({crop.size for crop in config.views.crops})


def _replicated(_config: settings.Config, network: Network, _runs: Calls, gpus: int) -> list[Collectives]:
    size = FLOAT * sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    buckets = max(1, -(-size // (25 << 20)))  # DDP's bucket_cap_mb; how it fills them is its own
    return [Collectives("gradients", "all_reduce", gpus, buckets, size)]


def _sharded(config: settings.Config, network: Network, runs: Calls, gpus: int) -> list[Collectives]:
    ranks, pieces = shard_ranks(config, gpus), config.train.accumulate
    units = network.units()
    again = checkpointed(network.trunk, config.train.activation_checkpointing)
    sizes = {unit: _padded(unit.parameters(), ranks) for unit in units}
    whole = _padded(network.parameters(), ranks)
    trained = {unit for unit in units if any(call.gradient for call in runs[unit])}
    # A block is gathered in each forward and again for its backward; recomputation finds it gathered. With several
    # pieces, again for the forward without gradient. What is in no block stays gathered until the backward is
    # over. Gradients are reduced once, those of recomputed blocks once per resolution.
    gathers = {unit: sum(1 + call.gradient + (pieces > 1) for call in runs[unit]) for unit in units}
    # In backward, what ran before a block is fetched meanwhile: before the first trained one a copy's, in vain.
    order = [unit for unit in runs if unit in sizes]
    before = next(place for place, unit in enumerate(order) if unit in trained) - 1
    if before >= 0:
        gathers[order[before]] += 1
    gathered = sum(gathers[unit] * sizes[unit] for unit in units) + whole - sum(sizes.values())
    more = {unit: len(runs[unit]) - 1 for unit in again}
    reduced = _padded((p for p in network.parameters() if p.requires_grad), ranks)
    reduced += sum(times * sizes[unit] for unit, times in more.items())
    count, size = pieces * (len(trained) + 1 + sum(more.values())), FLOAT * pieces * reduced
    found = [
        Collectives("weights", "all_gather", ranks, pieces * (sum(gathers.values()) + 1), FLOAT * pieces * gathered),
        Collectives("gradients", "reduce_scatter", ranks, count, size),
    ]
    if gpus > ranks:
        found.append(Collectives("gradients across groups", "all_reduce", gpus // ranks, count, size // ranks))
    return found + _norms(config, network, ranks)


def _norms(config: settings.Config, network: Network, ranks: int) -> list[Collectives]:
    if config.optimizer.name not in ("larc", "lars"):
        return []
    groups = parameter_groups(network, config.optimizer.exclude)
    adapted = sum(len(group["params"]) for group in groups if group.get("adapt", True))
    return [Collectives("norms", "all_reduce", ranks, 1, FLOAT * 2 * adapted)]


def _flat(config: settings.Config, network: Network, runs: Calls, gpus: int) -> list[Collectives]:
    """fairscale gathers and reduces each parameter on its own, but that small gradients share a bucket.

    The units are gathered in each forward, and in backward once, or once per resolution where they are recomputed; so
    often their gradients are reduced. What is in no unit is gathered in forward and backward. Not counted is what an
    objective asks for whole.
    """
    pieces = config.train.accumulate
    again = checkpointed(network.trunk, config.train.activation_checkpointing)
    rest = dict.fromkeys(network.parameters())
    times: list[tuple[list[nn.Parameter], int, int]] = []  # parameters, how often gathered, how often reduced
    for unit in network.units():
        own = list(unit.parameters())
        backwards = sum(call.gradient for call in runs[unit])
        backwards = backwards if unit in again else min(1, backwards)
        times.append((own, len(runs[unit]) * (1 + (pieces > 1)) + backwards, backwards))
        for parameter in own:
            del rest[parameter]
    times.append((list(rest), 2 + (pieces > 1), 1))
    gathered = [p for own, often, _ in times for p in own * often]
    reduced = [_filled(p, gpus) for own, _, often in times for p in own * often if p.requires_grad]
    bucket = (25 << 20) // FLOAT  # its bucket_cap_mb
    alone = sum(size > bucket for size in reduced)
    shared = -(-sum(size for size in reduced if size <= bucket) // bucket)
    found = [
        Collectives("weights", "all_gather", gpus, pieces * len(gathered),
                    FLOAT * pieces * sum(_filled(p, gpus) for p in gathered)),
        Collectives("gradients", "reduce_scatter", gpus, pieces * (alone + shared), FLOAT * pieces * sum(reduced)),
    ]  # fmt: skip
    if config.train.precision == "fp16":
        found.append(Collectives("overflow", "all_reduce", gpus, 1, FLOAT))
    return found + _norms(config, network, gpus)


def _filled(parameter: Tensor, ranks: int) -> int:
    """Numbers of a parameter, filled up to a multiple of the ranks."""
    return -(-parameter.numel() // ranks) * ranks


def _padded(parameters: Iterable[Tensor], ranks: int) -> int:
    """Numbers in all, each parameter's rows filled up to a multiple of the ranks, as FSDP2 does."""
    return sum(-(-p.shape[0] // ranks) * ranks * (p.numel() // p.shape[0]) for p in parameters)


def _batch_norm(config: settings.Config, network: Network, runs: Calls, ranks: int) -> list[Collectives]:
    """A gather of mean, variance and count of each forward, a sum of two vectors of each backward."""
    pieces = config.train.accumulate
    again = {
        layer
        for block in checkpointed(network.trunk, config.train.activation_checkpointing)
        for layer in block.modules()
    }
    gathers = sums = gathered = summed = 0
    for layer, its in runs.items():
        if isinstance(layer, _BatchNorm):
            backwards = pieces * sum(call.gradient for call in its)
            forwards = pieces * len(its) * (1 + (pieces > 1)) + backwards * (layer in again)
            gathers, sums = gathers + forwards, sums + backwards
            gathered += forwards * FLOAT * (2 * layer.num_features + 1) * ranks
            summed += backwards * FLOAT * 2 * layer.num_features
    return [
        Collectives("BatchNorm", "all_gather", ranks, gathers, gathered),
        Collectives("BatchNorm", "all_reduce", ranks, sums, summed),
    ]


#: What each engine sends for weights and gradients, and for norms of parameters that it has cut.
SENT = {"ddp": _replicated, "fsdp2": _sharded, "fairscale": _flat}
