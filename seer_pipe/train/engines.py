"""The ways to spread a network over the processes of a run, each a class behind one interface."""

from __future__ import annotations

import importlib.util

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method

from seer_pipe import config as settings
from seer_pipe.distributed.world import World
from seer_pipe.errors import UserError
from seer_pipe.objectives.base import Network
from seer_pipe.train.parallel import replicate, shard


class Engine:
    """How a network is spread. This one is for one process alone: nothing is."""

    sharded = False
    """Ranks hold a part of each parameter (see `distributed.parts`), and gather the whole to compute with it."""

    weights_wait = False
    """Where gradients of a block wait for the last of several resolutions, its weights stay whole as long."""

    def spread(self, network: Network, train: settings.Train, world: World) -> None:
        """Of a network on the meta device: all that must be done before its parameters have memory and values."""

    def ready(self, network: Network, world: World) -> nn.Module:
        """What to call in training, of the network that has its first weights."""
        return network

    def scaler(self, device: str, *, enabled: bool) -> torch.amp.GradScaler:
        """Of the loss, in float16. All ranks must agree on which steps overflowed."""
        return torch.amp.GradScaler(device, enabled=enabled)


class Ddp(Engine):
    """Every rank holds everything; gradients are averaged."""

    def ready(self, network: Network, world: World) -> nn.Module:
        return replicate(network, world)


class Fsdp2(Engine):
    """The network's units are sharded each on its own, then the rest."""

    sharded = True

    def spread(self, network: Network, train: settings.Train, world: World) -> None:
        shard(network, network.units(), world, train.shard_within)
        register_fsdp_forward_method(network, "features")  # the probe's way in


class Fairscale(Engine):
    """As fsdp2, by fairscale's FullyShardedDataParallel. The package is imported where one is made."""

    sharded = weights_wait = True

    def __init__(self) -> None:
        from seer_pipe.train import fairscale

        self._with = fairscale

    def spread(self, network: Network, train: settings.Train, world: World) -> None:
        self._with.shard(network, world)

    def ready(self, network: Network, world: World) -> nn.Module:
        self._with.clear_padding(network.parameters())
        return network

    def scaler(self, device: str, *, enabled: bool) -> torch.amp.GradScaler:
        return self._with.Scaler(device, enabled=enabled)


ENGINES: dict[str, type[Engine]] = {"none": Engine, "ddp": Ddp, "fsdp2": Fsdp2, "fairscale": Fairscale}


def engine_of(wanted: str, ranks: int) -> str:
    """The name of the engine that ``train.parallel`` means for so many ranks."""
    return wanted if wanted != "auto" else "none" if ranks == 1 else "fsdp2"


def check_engine(train: settings.Train, ranks: int) -> None:
    """UserError where ``train.parallel`` does not fit so many ranks or another setting, or is not installed."""
    wanted = train.parallel
    if wanted == "none" and ranks > 1:
        raise UserError(f"train.parallel none: {ranks} processes need ddp or fsdp2")
    if wanted == "fairscale" and importlib.util.find_spec("fairscale") is None:
        raise UserError("train.parallel fairscale: it is not installed: pip install 'seer-pipe[fairscale]'")
    if wanted == "fairscale" and train.shard_within is not None:
        raise UserError("train.shard_within: fairscale shards over all ranks; leave it out, or use fsdp2")
    if wanted not in ("auto", "none") and ranks == 1 and not dist.is_initialized():
        raise UserError(f"train.parallel {wanted}: one process alone has nobody to share with; use none or auto")
