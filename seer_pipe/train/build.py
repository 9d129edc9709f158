"""From a config to the parts of a run."""

from __future__ import annotations

import os
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from seer_pipe import config as settings
from seer_pipe.data import views
from seer_pipe.errors import UserError
from seer_pipe.models import Trunk, build_trunk, init_weights
from seer_pipe.objectives.base import Network, Objective
from seer_pipe.objectives.swav import Swav, SwavHead
from seer_pipe.optim.larc import Larc
from seer_pipe.optim.schedule import constant_learning_rate, learning_rate
from seer_pipe.train import syncbn
from seer_pipe.train.parallel import World, parallel_mode, recompute, replicate, shard


def build_crops(config: settings.Views) -> list[views.CropSpec]:
    def augment(crop: settings.Crop) -> views.Augment:
        return views.Augment(**(crop.augment or config.augment).model_dump())

    return [views.CropSpec(crop.count, crop.size, crop.scale, augment(crop)) for crop in config.crops]


@dataclass(frozen=True)
class Spread:
    """A network spread over the processes of a run, with its first weights."""

    network: Network  # its parameters are what is optimised and saved
    trunk: Trunk
    objective: Objective
    forward: nn.Module  # what to call in training


def outline(config: settings.Config) -> tuple[Network, Trunk, SwavHead]:
    """Trunk and head on the meta device: shapes and names, without memory and values."""
    wanted = config.objective
    with torch.device("meta"):
        trunk = build_trunk(config.model.name, stem=config.model.stem)
        dims = [trunk.width, *wanted.head.hidden, wanted.head.dim]
        head = SwavHead(dims, wanted.prototypes, wanted.head.batch_norm)
        return Network(trunk, head), trunk, head


def build_network(config: settings.Config) -> tuple[Network, Trunk]:
    """Trunk and head whole on the CPU, with the weights that every run of this config begins with."""
    network, trunk, _ = outline(config)
    materialise(network, config.seed, torch.device("cpu"))
    return network, trunk


def spread_network(config: settings.Config, world: World) -> Spread:
    """Trunk and head with their first weights, spread over the processes, and the objective over them.

    The order matters. All that changes how a block computes comes first, on the meta device; then sharding; only
    then does a rank give memory to what is its own. So a sharded network never stands whole anywhere.
    """
    network, trunk, head = outline(config)
    network.to(memory_format=layout(config.train))  # type: ignore[call-overload]  # the stubs lack it
    if world.size > 1 and config.train.sync_bn:
        syncbn.convert(network)
    if config.train.activation_checkpointing:
        for block in trunk.blocks():
            recompute(block)
    mode = parallel_mode(config.train.parallel, world)
    if mode == "fsdp2":
        shard(network, trunk.blocks(), world)
    materialise(network, config.seed, world.device)
    objective = build_objective(config, head, world.device)
    return Spread(network, trunk, objective, replicate(network, world) if mode == "ddp" else network)


def materialise(network: nn.Module, seed: int, device: torch.device) -> None:
    """Give a network on the meta device, sharded or not, memory and its first weights, the same for every world."""
    network.to_empty(device=device)
    init_weights(network, torch.Generator().manual_seed(seed))


def build_objective(config: settings.Config, head: SwavHead, device: torch.device) -> Objective:
    wanted = config.objective
    return Swav(
        head,
        crops=config.views.count,
        assignment=wanted.assign,
        temperature=wanted.temperature,
        eps=wanted.epsilon,
        iterations=wanted.sinkhorn_iterations,
        freeze_images=wanted.freeze_images,
        queue_length=wanted.queue,
        queue_start=wanted.queue_start_images,
        device=device,
    )


def build_optimizer(config: settings.Optimizer, network: nn.Module) -> Optimizer:
    """The optimiser over all parameters; its learning rate is set before every step."""
    parameters = list(network.parameters())
    if config.name == "adamw":
        return AdamW(parameters, lr=0.0, weight_decay=config.weight_decay)
    if config.name == "sgd":
        return SGD(parameters, lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay)
    return Larc(
        parameters, lr=0.0, momentum=config.momentum, weight_decay=config.weight_decay, trust=config.trust
    )


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
    )


def precision(config: settings.Train, world: World) -> torch.dtype | None:
    """What to autocast the network's arithmetic to; None is plain fp32."""
    on_gpu = world.device.type == "cuda"
    if config.precision == "auto":
        return torch.bfloat16 if on_gpu and torch.cuda.is_bf16_supported() else None
    return torch.bfloat16 if config.precision == "bf16" else None


def layout(config: settings.Train) -> torch.memory_format:
    return torch.channels_last if config.channels_last else torch.contiguous_format


def set_threads(config: settings.Train, world: World) -> None:
    """CPU threads of the network's arithmetic: sums depend on their number, so an exact resume keeps it."""
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    elif world.size > 1 and world.device.type == "cpu" and "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // world.size))


def check_world(derived: settings.Derived, batch: int, world: World) -> None:
    if derived.images_per_rank < 2:
        raise UserError(f"train.batch {batch}: {world.size} ranks leave one image each; BatchNorm needs two")
