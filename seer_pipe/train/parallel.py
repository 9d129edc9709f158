"""A network spread over the processes of a run: sharded, replicated, its blocks compiled or recomputed."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from seer_pipe.distributed.world import World
from seer_pipe.errors import UserError
from seer_pipe.train.syncbn import bn_safe_checkpoint_context


def shard(network: nn.Module, units: Iterable[nn.Module], world: World, within: int | str | None = None) -> None:
    """Shard ``network`` in place by FSDP2: each of ``units`` on its own, then the rest. Names do not change.

    ``within``: shard over groups of so many neighbouring ranks, or over those of a node, and replicate across the
    groups (HSDP); None: shard over all.
    """
    size = world.size if within is None else _ranks_of_node() if within == "node" else int(within)
    if world.size % size:
        raise UserError(f"train.shard_within {within}: {world.size} ranks are no whole number of groups of {size}")
    kind, groups = world.device.type, world.size // size
    if groups == 1:
        mesh = init_device_mesh(kind, (size,))
    else:
        mesh = init_device_mesh(kind, (groups, size), mesh_dim_names=("replicate", "shard"))
    for unit in units:
        fully_shard(unit, mesh=mesh)
    fully_shard(network, mesh=mesh)


def _ranks_of_node() -> int:
    try:
        return int(os.environ["LOCAL_WORLD_SIZE"])
    except (KeyError, ValueError):
        raise UserError("train.shard_within node: LOCAL_WORLD_SIZE is not set; start by torchrun, or give the number "
                        "of a node's ranks") from None  # fmt: skip


def ranks_in_step(ranks: int, world: World) -> dist.ProcessGroup | None:
    """The ranks that this one shares BatchNorm statistics with: a group of so many neighbours; None: all."""
    if ranks == world.size:
        return None
    group: dist.ProcessGroup = dist.new_subgroups(group_size=ranks)[0]
    return group


def replicate(network: nn.Module, world: World) -> nn.Module:
    """The DDP module around ``network``."""
    devices = [world.device] if world.device.type == "cuda" else None
    return DistributedDataParallel(network, device_ids=devices, forward_sync_buffers=False)


def compile_block(block: nn.Module) -> None:
    """Compile the forward of ``block``, each input shape on its own: multi-crop has few, and they never change.

    Blocks share code but not shapes, so each keeps its own programs; sharding and hooks stay outside of them.
    """
    block.forward = torch.compile(block.forward, dynamic=False, **_isolated())  # type: ignore[call-overload]


def _isolated() -> dict[str, bool]:
    """Programs of a block's own. torch before 2.13 keeps those of all in one list, whose bounds are lifted instead."""
    if "isolate_recompiles" in inspect.signature(torch.compile).parameters:
        return {"isolate_recompiles": True}
    bounds: Any = torch._dynamo.config
    bounds.recompile_limit = bounds.accumulated_recompile_limit = 10_000
    return {}


def recompute(block: nn.Module, *, at_once: bool = False) -> None:
    """Keep only the input of ``block`` for the backward pass, and compute the rest again there.

    Its forward is replaced, not the module: names, hooks and sharding stay as they are. ``at_once``: each backward of
    the block ends in its parameters' gradients. Autograd alone holds the gradients of one resolution back until those
    of all resolutions are there, and so, of a sharded network, the whole gradient, unsharded; FSDP2 reduces it this
    way block by block, once per resolution. (DDP takes a gradient once only.)
    """
    context = bn_safe_checkpoint_context(block)
    if at_once:
        block.forward = functools.partial(_AtOnce.apply, block.forward, context)
    else:
        block.forward = functools.partial(checkpoint, block.forward, use_reentrant=False, context_fn=context)


class _AtOnce(torch.autograd.Function):
    """A block of one input and output whose backward is a whole one of its own. Its input must require a gradient."""

    @staticmethod
    def forward(ctx: Any, forward: Callable[..., Tensor], context: Callable[..., Any], input: Tensor) -> Tensor:
        ctx.block, ctx.context = forward, context
        ctx.save_for_backward(input)
        kind = input.device.type
        # as in the step: a cache would keep what was cast of a gathered weight
        ctx.autocast = kind, torch.get_autocast_dtype(kind), torch.is_autocast_enabled(kind), False
        return forward(input)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (input,) = ctx.saved_tensors
        input = input.detach().requires_grad_()
        _, recomputation = ctx.context()
        with torch.enable_grad(), recomputation, torch.autocast(*ctx.autocast):
            output = ctx.block(input)
        torch.autograd.backward(output, gradients)
        return None, None, input.grad
