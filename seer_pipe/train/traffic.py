"""What the ranks of a run send each other in a step, collective by collective, from the recipe alone.

Counted as torch calls them, in the steady state with nothing logged.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from seer_pipe import config as settings
from seer_pipe.distributed.traffic import FLOAT, Collectives
from seer_pipe.objectives.base import Network
from seer_pipe.train.build import checkpointed, outline, parameter_groups
from seer_pipe.train.syncbn import groups

GPUS_OF_A_NODE = 8  # for train.shard_within: node


def traffic(config: settings.Config, gpus: int) -> list[Collectives]:
    """All collectives of a step on so many GPUs; none for one. UserError where train.sync_bn does not fit them."""
    ranks, _ = groups(config.train, gpus)
    if gpus == 1:
        return []
    network = outline(config)
    found = [
        *config.objective.collectives(config.views, config.train.batch, gpus),
        Collectives("agreement", "all_reduce", gpus, 1, 3 * FLOAT),
    ]
    if config.optimizer.clip_norm is not None:
        found.append(Collectives("norm of the gradient", "all_reduce", gpus, 1, FLOAT))
    if ranks > 1:
        found += _batch_norm(config, network, ranks)
    if config.train.parallel == "ddp":
        size = FLOAT * sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
        buckets = max(1, -(-size // (25 << 20)))  # DDP's bucket_cap_mb; how it fills them is its own
        return [*found, Collectives("gradients", "all_reduce", gpus, buckets, size)]
    return found + _sharded(config, network, gpus)


def shard_ranks(config: settings.Config, gpus: int) -> int:
    """Over how many ranks FSDP2 shards."""
    within = config.train.shard_within
    return gpus if within is None else GPUS_OF_A_NODE if within == "node" else within


def resolutions(config: settings.Config) -> int:
    """How often the trunk runs in a step."""
    return len({crop.size for crop in config.views.crops})


def _sharded(config: settings.Config, network: Network, gpus: int) -> list[Collectives]:
    ranks, pieces, sizes = shard_ranks(config, gpus), config.train.accumulate, resolutions(config)
    blocks = network.trunk.blocks()
    again = checkpointed(network.trunk, config.train.activation_checkpointing)
    whole, in_blocks, in_again = (
        FLOAT * pieces * _padded((p for unit in units for p in unit.parameters()), ranks)
        for units in ([network], blocks, again)
    )
    # A block is gathered for each resolution in forward and again in backward; recomputation finds it gathered. With
    # several pieces, again for the forward without gradient. What is in no block stays gathered
    # until the backward is over. Gradients are reduced once, those of recomputed blocks once per resolution.
    gathers = sizes * (3 if pieces > 1 else 2)
    more = sizes - 1
    calls, size = pieces * (len(blocks) + 1 + more * len(again)), whole + more * in_again
    found = [
        Collectives("weights", "all_gather", ranks, pieces * (len(blocks) * gathers + 1),
                    in_blocks * gathers + whole - in_blocks),
        Collectives("gradients", "reduce_scatter", ranks, calls, size),
    ]  # fmt: skip
    if gpus > ranks:
        found.append(Collectives("gradients across groups", "all_reduce", gpus // ranks, calls, size // ranks))
    if config.optimizer.name in ("larc", "lars"):
        groups = parameter_groups(network, config.optimizer.exclude)
        adapted = sum(len(group["params"]) for group in groups if group.get("adapt", True))
        found.append(Collectives("norms", "all_reduce", ranks, 1, FLOAT * 2 * adapted))
    return found


def _padded(parameters: Iterable[Tensor], ranks: int) -> int:
    """Numbers in all, each parameter's rows filled up to a multiple of the ranks, as FSDP2 does."""
    return sum(-(-p.shape[0] // ranks) * ranks * (p.numel() // p.shape[0]) for p in parameters)


def _batch_norm(config: settings.Config, network: Network, ranks: int) -> list[Collectives]:
    """A gather of mean, variance and count of each forward, a sum of two vectors of each backward."""
    pieces = config.train.accumulate
    again = {
        layer
        for block in checkpointed(network.trunk, config.train.activation_checkpointing)
        for layer in block.modules()
    }
    in_trunk = set(network.trunk.modules())
    gathers = sums = gathered = summed = 0
    for layer in network.modules():
        if isinstance(layer, _BatchNorm):
            times = pieces * (resolutions(config) if layer in in_trunk else 1)
            forwards = times * (1 + (layer in again) + (pieces > 1))
            gathers, sums = gathers + forwards, sums + times
            gathered += forwards * FLOAT * (2 * layer.num_features + 1) * ranks
            summed += times * FLOAT * 2 * layer.num_features
    return [
        Collectives("BatchNorm", "all_gather", ranks, gathers, gathered),
        Collectives("BatchNorm", "all_reduce", ranks, sums, summed),
    ]
