"""Tensors of which a rank holds a part: DTensors, as FSDP2 makes them, and flat parts, as fairscale does.

A flat part is a tensor [n] that `mark` says is some of the numbers of a whole one. It is marked on parameters; their
gradients and what an optimiser keeps of them are cut alike.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor

from seer_pipe.distributed.collectives import all_gather_single, local

Sizes = tuple[int, ...]


@dataclass(frozen=True)
class Flat:
    """Of a tensor of ``shape``, counted row by row, the ``index``-th of ``ranks`` equal parts, filled up with zeros.

    The ranks are all of the run, and the index is the rank.
    """

    shape: torch.Size
    index: int
    ranks: int

    @property
    def width(self) -> int:
        return -(-self.shape.numel() // self.ranks)

    @property
    def start(self) -> int:
        return min(self.index * self.width, self.shape.numel())

    @property
    def stop(self) -> int:
        return min(self.start + self.width, self.shape.numel())

    def boxes(self) -> Iterator[tuple[Sizes, Sizes, slice]]:
        """Boxes of the whole tensor that it consists of: offsets, sizes, and which of the part's numbers they are."""
        done = 0
        for offsets, sizes in boxes(self.shape, self.start, self.stop):
            yield offsets, sizes, slice(done, done + math.prod(sizes))
            done += math.prod(sizes)


def boxes(shape: Sequence[int], start: int, stop: int) -> Iterator[tuple[Sizes, Sizes]]:
    """Boxes, by offsets and sizes, that numbers ``start`` to ``stop`` of a tensor, row by row, consist of, in order."""
    if start >= stop:
        return
    if len(shape) < 2:
        yield (start,)[: len(shape)], (stop - start,)[: len(shape)]
        return
    row = math.prod(shape[1:])
    first, into = divmod(start, row)
    last, past = divmod(stop, row)
    if into or first == last:  # a row without its beginning, or one that is not finished
        for offsets, sizes in boxes(shape[1:], into, min(row, stop - first * row)):
            yield (first, *offsets), (1, *sizes)
        first += 1
    if first < last:
        yield (first, *[0] * (len(shape) - 1)), (last - first, *shape[1:])
    if past and first <= last:
        for offsets, sizes in boxes(shape[1:], 0, past):
            yield (last, *offsets), (1, *sizes)


def mark(tensor: Tensor, flat: Flat | None) -> Tensor:
    """The tensor, known as such a part from now on."""
    tensor.flat_part = flat  # type: ignore[attr-defined]
    return tensor


def flat_part(tensor: Tensor) -> Flat | None:
    return getattr(tensor, "flat_part", None)


def whole_shape(tensor: Tensor) -> torch.Size:
    flat = flat_part(tensor)
    return tensor.shape if flat is None else flat.shape


def cut_over(tensor: Tensor) -> tuple[dist.ProcessGroup, ...]:
    """The groups whose ranks hold different parts of it; what is whole or replicated on them counts once."""
    if flat_part(tensor) is not None:
        assert dist.group.WORLD is not None
        return (dist.group.WORLD,)
    if not isinstance(tensor, DTensor):
        return ()
    placements = enumerate(tensor.placements)
    return tuple(tensor.device_mesh.get_group(dim) for dim, placement in placements if placement.is_shard())


def whole(tensor: Tensor) -> Tensor:
    """All of it, on every rank; all ranks must call it. No gradient where it is a flat part."""
    if isinstance(tensor, DTensor):
        return tensor.full_tensor()
    flat = flat_part(tensor)
    if flat is None:
        return tensor
    gathered = tensor.new_empty(flat.ranks * flat.width)
    all_gather_single(gathered, tensor.detach())
    return gathered[: flat.shape.numel()].view(flat.shape)


@torch.no_grad()
def assign(tensor: Tensor, value: Tensor) -> None:
    """Copy the whole ``value``, which every rank has, into ``tensor``: of a part, what belongs there."""
    flat = flat_part(tensor)
    if flat is not None:
        tensor[: flat.stop - flat.start].copy_(value.flatten()[flat.start : flat.stop])
        return
    if isinstance(tensor, DTensor):
        value = distribute_tensor(value.to(tensor.device), tensor.device_mesh, tensor.placements, src_data_rank=None)
    tensor.copy_(value)


@torch.no_grad()
def change_rows(tensor: Tensor, change: Callable[[Tensor], Tensor]) -> None:
    """Put ``change(rows)`` in the place of the rows of a tensor [N, …]; all ranks must call it.

    A rank changes its own where it has whole ones. Otherwise they are gathered, and each changes all.
    """
    flat = flat_part(tensor)
    if flat is None:
        rows = local(tensor)
        rows.copy_(change(rows))
    elif flat.shape[0] % flat.ranks == 0:
        rows = tensor.detach().view(-1, *flat.shape[1:])
        rows.copy_(change(rows))
    else:
        assign(tensor, change(whole(tensor)))
