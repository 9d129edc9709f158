"""The processes of a run, and a network spread over them.

A rank finds its place in the variables that torchrun (and the launcher) set; without them there is one process.
"""

from __future__ import annotations

import functools
import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from seer_pipe.errors import UserError
from seer_pipe.train.syncbn import bn_safe_checkpoint_context

#: A rank that waits longer than this for another ends the run instead of hanging.
PATIENCE = timedelta(minutes=5)


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, item: Any) -> list[Any]:
        """The ``item`` of every rank, in order of rank, on every rank. For small Python objects."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Travels between CPUs: the GPU is not waited for."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def join(device: str = "auto") -> Iterator[World]:
    """Enter the run as one of its processes; ``device`` is auto, cpu or cuda."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device cuda: torch finds no CUDA device here; use cpu or auto")
    joined = dist.is_initialized()  # by the caller, who then leaves as well
    rank = dist.get_rank() if joined else int(os.environ.get("RANK", 0))
    size = dist.get_world_size() if joined else int(os.environ.get("WORLD_SIZE", 1))
    here = torch.device("cpu")
    if device == "cuda":
        local = int(os.environ.get("LOCAL_RANK", rank)) % torch.cuda.device_count()
        here = torch.device("cuda", local)
        torch.cuda.set_device(here)
    if size == 1 or joined:
        yield World(rank, size, here)
        return
    dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    try:
        yield World(rank, size, here)
    finally:
        dist.destroy_process_group()


def parallel_mode(wanted: str, world: World) -> str:
    """How a network is spread over the processes: none (one process only), ddp or fsdp2.

    ``wanted`` may also be auto: fsdp2 where there are several processes.
    """
    if wanted == "auto":
        return "none" if world.size == 1 else "fsdp2"
    if wanted == "none" and world.size > 1:
        raise UserError(f"train.parallel none: {world.size} processes need ddp or fsdp2")
    if wanted != "none" and not dist.is_initialized():
        raise UserError(f"train.parallel {wanted}: one process alone has nobody to share with; use none or auto")
    return wanted


def shard(network: nn.Module, units: Iterable[nn.Module], world: World) -> None:
    """Shard ``network`` in place by FSDP2: each of ``units`` by itself, then the rest. Names do not change."""
    if not all(parameter.is_contiguous() for parameter in network.parameters()):
        raise UserError("train.channels_last: fsdp2 cannot shard it; set it to false, or train.parallel to ddp")
    mesh = init_device_mesh(world.device.type, (world.size,))
    for unit in units:
        fully_shard(unit, mesh=mesh)
    fully_shard(network, mesh=mesh)


def replicate(network: nn.Module, world: World) -> nn.Module:
    """The DDP module around ``network``."""
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, forward_sync_buffers=False)


def recompute(block: nn.Module) -> None:
    """Keep only the input of ``block`` for the backward pass, and compute the rest again there.

    Its forward is replaced, not the module: names, hooks and sharding stay as they are.
    """
    block.forward = functools.partial(
        checkpoint, block.forward, use_reentrant=False, context_fn=bn_safe_checkpoint_context(block)
    )


def whole(tensor: torch.Tensor) -> torch.Tensor:
    """The logical tensor on the CPU, whatever its sharding. All ranks must call it."""
    if isinstance(tensor, DTensor):
        tensor = tensor.full_tensor()
    return tensor.detach().cpu().contiguous()


def assign(tensor: torch.Tensor, value: torch.Tensor) -> None:
    """Copy the logical ``value`` into ``tensor``, sharded as it is."""
    with torch.no_grad():
        tensor.copy_(like(value, tensor))


def like(value: torch.Tensor, parameter: torch.Tensor) -> torch.Tensor:
    """The logical ``value``, which every rank has, placed and sharded as ``parameter``."""
    value = value.to(parameter.device)
    if isinstance(parameter, DTensor):
        return distribute_tensor(value, parameter.device_mesh, parameter.placements, src_data_rank=None)
    return value
