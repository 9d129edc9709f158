"""From a config to the parts of a run."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from seer_pipe import config as settings
from seer_pipe.data import views
from seer_pipe.distributed.world import World
from seer_pipe.errors import UserError
from seer_pipe.models import Trunk, build_trunk, init_weights
from seer_pipe.models.init import NORMS
from seer_pipe.objectives.base import Group, Network, Objective
from seer_pipe.objectives.settings import Setup
from seer_pipe.optim.larc import Larc, Lars
from seer_pipe.optim.schedule import constant_learning_rate, learning_rate, weight_decay
from seer_pipe.train import syncbn
from seer_pipe.train.engines import ENGINES, Engine, check_engine, engine_of
from seer_pipe.train.parallel import compile_block, ranks_in_step, recompute


def build_crops(config: settings.Config) -> list[views.CropSpec]:
    """The crops that the recipe draws of every image; of a pair, of its pictures in turn; of a clip, of each frame, or
    each of frames at a moment of its own, but for a sound around one."""
    orders = config.objective.orders(config.seed)
    groups = [
        views.CropSpec(
            crop.count, crop.size, crop.scale, crop.augment or config.views.augment, crop.layout, crop.grid, orders
        )
        for crop in config.views.crops
    ]
    seen = config.views
    pictures = seen.pictures if seen.clip is None or seen.sound is not None else seen.count
    if pictures == 1:
        return [replace(group, picture=frame) for group in groups for frame in range(seen.moments)]
    each = (replace(group, count=1) for group in groups for _ in range(group.count))
    return [replace(crop, picture=place % pictures) for place, crop in enumerate(each)]


@dataclass(frozen=True)
class Spread:
    """A network spread over the processes of a run, with its first weights."""

    network: Network  # its parameters are what is optimised and saved
    objective: Objective
    forward: nn.Module  # what to call in training
    engine: Engine
    layout: torch.memory_format  # of its crops


def outline(config: settings.Config) -> Network:
    """The network on the meta device: shapes and names, without memory and values."""
    model = config.model
    with torch.device("meta"):
        network = config.objective.network(lambda: build_trunk(model.name, stem=model.stem, norm=model.norm))
    check_inputs(network.trunk, config.views)
    for copy, _ in network.copies():
        copy.requires_grad_(False)
    return network


def check_inputs(trunk: Trunk, seen: settings.Views) -> None:
    """UserError where the views are clips and the trunk takes images, or the other way round."""
    if trunk.takes_clips and seen.clip is None:
        raise UserError(
            f"model.name: {trunk.name} takes clips, so views.frames must be joined: true, and data of clips"
        )
    if seen.clip is not None and not trunk.takes_clips:
        raise UserError(
            f"views.frames.joined: {trunk.name} takes images; set it to false, or model.name to r2plus1d_18"
        )


def build_network(config: settings.Config) -> Network:
    """The network whole on the CPU, with the weights that every run of this config begins with."""
    network = outline(config)
    materialise(network, config.seed, torch.device("cpu"))
    return network


def spread_network(config: settings.Config, world: World, samples: int = 0, shards: str = "") -> Spread:
    """Trunk and head with their first weights, spread over the processes, and the objective over them.

    ``samples``: in the set, for objectives that keep something of each; ``shards``: its fingerprint, for those that
    have something of each from a file.

    The order matters. All that changes how a block computes comes first, on the meta device; then sharding; only
    then does a rank give memory to what is its own. So a sharded network never stands whole anywhere.
    """
    network = outline(config)
    check_engine(config.train, world.size)
    engine = ENGINES[engine_of(config.train.parallel, world.size)]()
    form = layout(config.train, network.trunk, world)
    if not engine.sharded:  # cut are contiguous weights alone; of those a convolution of NHWC images makes NHWC copies
        network.to(memory_format=form)  # type: ignore[call-overload]  # the stubs lack it
    ranks, part = syncbn.groups(config.train, world.size)
    if ranks > 1:
        syncbn.convert(network, ranks_in_step(ranks, world))
    elif part is not None:
        syncbn.slice_batches(network, *part)
    if config.train.fused_bn:
        from seer_pipe.train.fused_bn import fuse_trunks  # Triton is not everywhere

        fuse_trunks(network, world.device, form)
    if config.train.compile is True:  # auto: no trunk was measured to be faster so
        for block in network.units():
            compile_block(block)
    for block in checkpointed(network.trunk, config.train.activation_checkpointing):
        recompute(block, at_once=engine.sharded)
    engine.spread(network, config.train, world)
    materialise(network, config.seed, world.device)
    forward = engine.ready(network, world)
    objective = config.objective.objective(
        network, Setup(config.views, config.seed, samples, world.device, config.train.batch, shards)
    )
    return Spread(network, objective, forward, engine, form)


def checkpointed(trunk: Trunk, wanted: bool | list[int]) -> list[nn.Module]:
    """The blocks whose activations are computed again in backward: all, none, or those of some stages (from 1)."""
    stages = [number for number, (_, depth) in enumerate(trunk.stages, 1) for _ in range(depth)]
    chosen = set(stages if wanted is True else wanted or [])
    return [block for block, stage in zip(trunk.blocks(), stages, strict=True) if stage in chosen]


def materialise(network: Network, seed: int, device: torch.device) -> None:
    """Give a network on the meta device, sharded or not, memory and its first weights, alike for every world size."""
    network.to_empty(device=device)
    init_weights(network, torch.Generator().manual_seed(seed))
    begin_copies(network)


@torch.no_grad()
def begin_copies(network: Network) -> None:
    """Make the momentum copies equal to their originals."""
    for copy, original in network.copies():
        for mine, first in zip(copy.state_dict().values(), original.state_dict().values(), strict=True):
            mine.copy_(first)


def build_optimizer(config: settings.Optimizer, network: nn.Module) -> Optimizer:
    """The optimiser over all parameters; its learning rate and weight decay are set before every step."""
    groups = parameter_groups(network, config.exclude)
    if config.name == "adamw":
        return AdamW(groups, lr=0.0, weight_decay=config.weight_decay)
    if config.name == "sgd":
        return SGD(groups, lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay)
    layerwise = Larc if config.name == "larc" else Lars
    return layerwise(groups, lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay, trust=config.trust)


def parameter_groups(network: nn.Module, exclude: Sequence[str]) -> list[dict[str, Any]]:
    """The parameters that are trained, in groups that are optimised alike; first those that no rule names.

    ``exclude`` takes out of weight decay and adapted rates: norm, scales and shifts of norms; bias, the shifts of
    all other layers. `Network.groups` names others: ``rate`` multiplies the learning rate, ``constant`` keeps it at its
    peak.
    """
    norms = {id(p) for layer in network.modules() if isinstance(layer, NORMS) for p in layer.parameters()}
    named = network.groups if isinstance(network, Network) else {}
    for prefix in named:
        if not any(f"{name}.".startswith(f"{prefix}.") for name, _ in network.named_parameters()):
            raise ValueError(f"groups: no parameter is named {prefix} or begins with it")
    groups: dict[Group, list[nn.Parameter]] = {Group(): []}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            own = next((group for prefix, group in named.items() if f"{name}.".startswith(f"{prefix}.")), Group())
            rule = "norm" if id(parameter) in norms else name.rsplit(".", 1)[-1]
            groups.setdefault(replace(own, decay=own.decay and rule not in exclude), []).append(parameter)
    return [
        {"params": parameters, "rate": group.rate, "constant": group.constant, "decay": group.decay}
        | ({} if group.decay else {"weight_decay": 0.0, "adapt": False})
        for group, parameters in groups.items()
        if parameters
    ]


def rate_at(config: settings.Optimizer, derived: settings.Derived, images: int) -> float:
    """The learning rate of the step that begins when ``images`` images have been seen."""
    peak, start = derived.peak_lr, derived.peak_lr * config.warmup_lr
    if config.schedule == "constant":
        return constant_learning_rate(images, peak=peak, warmup_images=config.warmup_images, warmup_start=start)
    return learning_rate(
        images,
        peak=peak,
        final=peak * config.final_lr,
        warmup_images=config.warmup_images,
        total_images=derived.images,
        warmup_start=start,
        cosine_start=0 if config.cosine_from == "start" else None,
    )


def decay_at(config: settings.Optimizer, derived: settings.Derived, images: int) -> float:
    """The weight decay of that step."""
    final = config.weight_decay if config.final_weight_decay is None else config.final_weight_decay
    return weight_decay(images, start=config.weight_decay, final=final, total_images=derived.images)


def precision(config: settings.Train, world: World) -> torch.dtype | None:
    """What to autocast the network's arithmetic to; None is plain fp32. On a GPU bf16, or fp16 if it lacks that."""
    if config.precision == "auto":
        if world.device.type != "cuda":
            return None
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    return {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}[config.precision]


#: Device and precision on which NHWC was measured to be faster, for trunks of the families that say so.
_NHWC_MEASURED = (("cuda", torch.bfloat16), ("cpu", None))


def layout(config: settings.Train, trunk: Trunk, world: World) -> torch.memory_format:
    """The memory layout of images; auto is NHWC where that was measured to be faster."""
    wanted = config.channels_last
    if wanted == "auto":
        wanted = trunk.channels_last and (world.device.type, precision(config, world)) in _NHWC_MEASURED
    elif wanted and trunk.takes_clips:
        raise UserError(f"train.channels_last: a layout of images, and {trunk.name} takes clips; set it to auto")
    return torch.channels_last if wanted else torch.contiguous_format


def set_up_torch(config: settings.Train, world: World) -> None:
    """cuDNN's benchmark mode, and CPU threads of the network's arithmetic.

    Sums depend on their number, and on the algorithms that win the benchmark, so an exact resume keeps the one and does
    without the other.
    """
    torch.backends.cudnn.benchmark = config.cudnn_benchmark
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    elif world.size > 1 and world.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world.size))


def check_world(derived: settings.Derived, config: settings.Train, world: World) -> None:
    syncbn.groups(config, world.size)
    images, pieces = derived.images_per_rank, config.accumulate
    if images < 2:
        raise UserError(f"train.batch {config.batch}: {world.size} ranks leave one image each; BatchNorm needs two")
    if images % pieces or images // pieces < 2:
        raise UserError(f"train.accumulate {pieces}: must cut a rank's {images} images into equal pieces of 2 or more")
