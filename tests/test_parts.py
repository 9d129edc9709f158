"""What a flat part holds of a tensor, and the same whatever way a tensor is cut."""

import math

import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

from seer_pipe.distributed.parts import Flat, assign, boxes, change_rows, cut_over, mark, whole, whole_shape
from tests.distributed import run_ranks


@given(shape=st.lists(st.integers(1, 4), max_size=4), ranks=st.integers(1, 9))
def test_the_boxes_of_all_parts_are_the_tensor_in_its_order(shape: list[int], ranks: int) -> None:
    tensor = torch.arange(math.prod(shape)).view(shape)
    found = []
    for index in range(ranks):
        flat = Flat(tensor.shape, index, ranks)
        assert flat.stop - flat.start <= flat.width
        for offsets, sizes, numbers in flat.boxes():
            box = tensor[tuple(slice(offset, offset + size) for offset, size in zip(offsets, sizes, strict=True))]
            assert box.shape == torch.Size(sizes)
            assert torch.equal(box.flatten(), torch.arange(flat.start, flat.stop)[numbers])
            found.append(box.flatten())
    assert torch.equal(torch.cat(found), tensor.flatten())


def test_a_part_has_few_boxes() -> None:
    assert list(boxes((3, 2, 2), 1, 11)) == [
        ((0, 0, 1), (1, 1, 1)), ((0, 1, 0), (1, 1, 2)), ((1, 0, 0), (1, 2, 2)), ((2, 0, 0), (1, 1, 2)),
        ((2, 1, 0), (1, 1, 1)),
    ]  # fmt: skip
    assert list(boxes((), 0, 1)) == [((), ())]
    assert list(boxes((4,), 2, 2)) == []


def cut(value: Tensor, way: str) -> Tensor:
    rank, ranks = dist.get_rank(), dist.get_world_size()
    if way == "flat":
        flat = Flat(value.shape, rank, ranks)
        tensor = mark(torch.zeros(flat.width), flat)
        assign(tensor, value)
        return tensor
    if way == "plain":
        return value.clone()
    mesh = init_device_mesh("cpu", (ranks,))
    return distribute_tensor(value, mesh, [Shard(0) if way == "rows" else Replicate()])


def ways(rows: int) -> list[tuple[str, bool, bool, int]]:
    value, found = torch.arange(3.0 * rows).view(rows, 3), []
    for way in ("flat", "plain", "rows", "replicated"):
        tensor = cut(value, way)
        same = torch.equal(whole(tensor), value) and whole_shape(tensor) == value.shape
        change_rows(tensor, lambda part: part / part.sum(dim=1, keepdim=True))
        changed = torch.allclose(whole(tensor), value / value.sum(dim=1, keepdim=True))
        found.append((way, same, changed, math.prod(group.size() for group in cut_over(tensor))))
    return found


@pytest.mark.parametrize(("world", "rows"), [(2, 4), (3, 4)])  # whole rows, and not
def test_every_way_of_cutting_gives_the_same(world: int, rows: int) -> None:
    expected = [("flat", True, True, world), ("plain", True, True, 1), ("rows", True, True, world),
                ("replicated", True, True, 1)]  # fmt: skip
    for found in run_ranks(world, ways, rows):
        assert found == expected
