"""The collectives that objectives need; without a process group they are those of a world of one rank.

`group` is a process group, or None for all ranks.
"""

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

#: The name that torch 2.13 gave it; the old one is deprecated there.
all_gather_single = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def rank(group: dist.ProcessGroup | None = None) -> int:
    return dist.get_rank(group) if dist.is_initialized() else 0


def world_size(group: dist.ProcessGroup | None = None) -> int:
    return dist.get_world_size(group) if dist.is_initialized() else 1


def local(tensor: Tensor | None) -> Tensor:
    """This rank's part of a tensor that may be sharded, without gradient. The tensor must be there."""
    assert tensor is not None
    tensor = tensor.detach()
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def all_sum_(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Replaces `tensor` by its sum over all ranks."""
    if world_size(group) > 1:
        dist.all_reduce(tensor, dist.ReduceOp.SUM, group)
    return tensor


def all_max_(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Replaces `tensor` by its elementwise maximum over all ranks."""
    if world_size(group) > 1:
        dist.all_reduce(tensor, dist.ReduceOp.MAX, group)
    return tensor


def all_gather_rows(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Joins equally shaped tensors [n, …] of all ranks to [world · n, …], in the order of ranks. No gradient."""
    ranks = world_size(group)
    if ranks == 1:
        return tensor
    rows = tensor.new_empty(ranks * tensor.shape[0], *tensor.shape[1:])
    all_gather_single(rows, tensor.contiguous(), group)
    return rows


def exchange_rows(rows: Tensor, sent: list[int], received: list[int], group: dist.ProcessGroup | None = None) -> Tensor:
    """Send ``sent[r]`` of the rows [n, …], in order, to each rank r; ``received[r]`` come from each. No gradient."""
    if world_size(group) == 1:
        return rows
    found = rows.new_empty(sum(received), *rows.shape[1:])
    dist.all_to_all_single(found, rows.contiguous(), received, sent, group)
    return found


def all_mean(tensors: list[Tensor], group: dist.ProcessGroup | None = None) -> list[Tensor]:
    """Means over all ranks of several tensors of one dtype, in one collective."""
    flat = all_sum_(torch.cat([tensor.reshape(-1) for tensor in tensors]), group) / world_size(group)
    parts = flat.split([tensor.numel() for tensor in tensors])
    return [part.view_as(tensor) for part, tensor in zip(parts, tensors, strict=True)]
