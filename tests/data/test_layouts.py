"""Crops of known geometry: quarter turns with their labels."""

import pytest
import torch

from seer_pipe.data.layouts import labels, lay_out
from seer_pipe.data.loader import Batch, Loader
from seer_pipe.data.order import Plan, slots_of
from seer_pipe.data.views import CropSpec
from seer_pipe.shards import ShardSet
from tests.train.helpers import make_pictures

SPECS = [CropSpec(2, 12, (0.3, 1.0), quarter_turns=True), CropSpec(1, 8, (0.1, 0.3))]
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
    assert torch.equal(labels(SPECS, 3), labels(SPECS, 3, "cuda").cpu())
