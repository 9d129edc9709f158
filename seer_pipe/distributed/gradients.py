"""Collectives with gradients that are those of one process on the global batch, for any number of ranks.

The gradient of a run is the mean over ranks of each rank's gradient (DDP and FSDP alike). So a rank must pass back the
world size times the gradient that the mean loss has with respect to what it sent. Two cases cover all objectives:

- Each rank has a loss of its own rows against gathered ones: `gather_rows`. The backward sums what all ranks pass back
  for a row. (To take the own slice only, as is often done, loses the gradient as a negative of the other ranks' rows.)
- Every rank computes with a sum over ranks: `sum_ranks`, whose backward sums as well. Where the rest of the loss is the
  same on all ranks, what comes back is equal on all, and a multiplication by the world size does it, without a
  collective (``same``). (Plain all-reduces in a loss pass it on as it is: the gradient is too small by that factor.)

Without a process group both are the identity. ``group`` is a process group, or None for all ranks.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from seer_pipe.distributed.collectives import all_gather_rows, all_sum_, world_size


def gather_rows(tensor: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """Joins equally shaped tensors [n, …] of all ranks to [world · n, …], in the order of ranks."""
    if world_size(group) == 1:
        return tensor
    rows: Tensor = _GatherRows.apply(tensor, group)
    return rows


def gather_crops(rows: Tensor, images: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """`gather_rows` for rows [crops · images, …] in crop-major order: [crops · world · images, …] in that order too."""
    by_image = rows.unflatten(0, (-1, images)).transpose(0, 1)
    return gather_rows(by_image, group).transpose(0, 1).flatten(0, 1)


def sum_ranks(tensor: Tensor, group: dist.ProcessGroup | None = None, *, same: bool = False) -> Tensor:
    """The sum over all ranks. ``same``: every rank computes the same loss from it, so its gradient is the same."""
    if world_size(group) == 1:
        return tensor
    total: Tensor = _SumRanks.apply(tensor, group, same)
    return total


def mean_and_variance(rows: Tensor, group: dist.ProcessGroup | None = None) -> tuple[Tensor, Tensor]:
    """Mean and biased variance [D] of the rows [n, D] of all ranks, n equal on each, by two sums.

    The mean is taken out before squares are summed, so nothing cancels.
    """
    count = len(rows) * world_size(group)
    mean = sum_ranks(rows.sum(0), group) / count
    return mean, sum_ranks((rows - mean).square().sum(0), group) / count


def second_moment(one: Tensor, other: Tensor, group: dist.ProcessGroup | None = None) -> Tensor:
    """The mean over the rows of all ranks of the outer products of ``one`` [n, D] and ``other`` [n, E]: [D, E].

    The rest of the loss must be the same on every rank.
    """
    return sum_ranks(one.T @ other, group, same=True) / (len(one) * world_size(group))


class _GatherRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup | None) -> Tensor:
        ctx.group, ctx.images = group, len(tensor)
        return all_gather_rows(tensor, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        (passed,) = gradients
        own = passed.new_empty(ctx.images, *passed.shape[1:])
        dist.reduce_scatter_tensor(own, passed.contiguous(), dist.ReduceOp.SUM, ctx.group)
        return own, None


class _SumRanks(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, tensor: Tensor, group: dist.ProcessGroup | None, same: bool) -> Tensor:
        ctx.group, ctx.same = group, same
        return all_sum_(tensor.clone(), group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (passed,) = gradients
        return passed * world_size(ctx.group) if ctx.same else all_sum_(passed.clone(), ctx.group), None, None
