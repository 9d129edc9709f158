"""Crops of known geometry: quarter turns with their labels."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from seer_pipe.config import Augment
from seer_pipe.data.layouts import labels, lay_out
from seer_pipe.data.loader import Batch, Loader
from seer_pipe.data.order import Plan, slots_of
from seer_pipe.data.views import CropSpec, draw
from seer_pipe.shards import ShardSet
from tests.train.helpers import make_pictures

SPECS = [CropSpec(2, 12, (0.3, 1.0), layout="quarter_turns"), CropSpec(1, 8, (0.1, 0.3))]
PLAIN = [CropSpec(2, 12, (0.3, 1.0)), CropSpec(1, 8, (0.1, 0.3))]


def batch(shards: ShardSet, specs: list[CropSpec], rank: int = 0, world: int = 1) -> Batch:
    loader = Loader(shards, Plan(shards.counts, 8, seed=3), slots_of(rank, world, 8), specs, seed=3,
                    layout=torch.channels_last)  # fmt: skip
    try:
        return next(iter(loader.batches(1, 2)))
    finally:
        loader.close()


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    return ShardSet.open(str(make_pictures(tmp_path_factory.mktemp("pictures"), [17, 30])))


def test_each_crop_comes_in_four_turns(shards: ShardSet) -> None:
    """Of the very crops that come without turns, pixel for pixel."""
    plain, turned = batch(shards, PLAIN), batch(shards, SPECS)
    assert plain.labels is None
    assert turned.labels is not None
    assert turned.labels.tolist() == [[turn] * 8 for turn in (0, 1, 2, 3, 0, 1, 2, 3, 0)]
    assert turned.labels.dtype == torch.int64
    for place, (crop, row) in enumerate(zip(turned.crops, turned.labels, strict=True)):
        drawn = plain.crops[min(place // 4, 2)]
        assert torch.equal(crop, torch.rot90(drawn, int(row[0]), (2, 3)))
        assert crop.is_contiguous(memory_format=torch.channels_last)


def test_a_shuffled_grid_comes_with_the_cells_of_its_patches(shards: ShardSet) -> None:
    """Whatever its order, the patch that is said to be of a cell is that cell's, pixel for pixel."""
    still = Augment(jitter_p=0, grey_p=0, blur_p=0)
    grid = CropSpec(1, 12, (0.5, 1.0), still, layout="grid")
    plain, mixed = batch(shards, [grid, *PLAIN]), batch(shards, [replace(grid, layout="shuffled_grid"), *PLAIN])
    assert plain.labels is not None
    assert mixed.labels is not None
    assert plain.labels.tolist() == [[cell] * 8 for cell in (*range(9), 0, 0, 0)]
    assert (mixed.labels[:9].sort(0).values == plain.labels[:9]).all()
    assert not torch.equal(mixed.labels, plain.labels)
    assert [crop.shape[-1] for crop in mixed.crops] == [12] * 9 + [12, 12, 8]
    cells = torch.stack(plain.crops[:9])
    for place in range(9):
        assert torch.equal(mixed.crops[place], cells[mixed.labels[place], torch.arange(8)])
    assert all(torch.equal(one, other) for one, other in zip(plain.crops[9:], mixed.crops[9:], strict=True))


def test_two_ranks_see_halves(shards: ShardSet) -> None:
    whole, halves = batch(shards, SPECS), [batch(shards, SPECS, rank, 2) for rank in (0, 1)]
    for place, crop in enumerate(whole.crops):
        assert torch.equal(crop, torch.cat([half.crops[place] for half in halves]))
    assert torch.equal(whole.labels, torch.cat([half.labels for half in halves], dim=1))


@pytest.mark.gpu
def test_turns_on_a_gpu_are_those_on_a_cpu() -> None:
    crops = [torch.randn(3, 3, 12, 12), torch.randn(3, 3, 12, 12), torch.randn(3, 3, 8, 8)]
    there = lay_out([crop.cuda() for crop in crops], SPECS)
    assert all(torch.equal(one, other.cpu()) for one, other in zip(lay_out(crops, SPECS), there, strict=True))
    sizes = np.full(3, 50)
    views = draw(1, 0, np.arange(3), sizes, sizes, SPECS)
    assert torch.equal(labels(views, SPECS), labels(views, SPECS, "cuda").cpu())
