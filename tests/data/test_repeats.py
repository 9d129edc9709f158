"""Samples that come several times an epoch: every copy once a pass, on any number of ranks, by one integer of state."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from seer_pipe.config import Data
from seer_pipe.data.loader import Loader
from seer_pipe.data.order import Places, Plan, slots_of
from seer_pipe.data.repeats import Copies, Repeats, read_repeats, write_repeats
from seer_pipe.data.sources import Mix, open_data
from seer_pipe.data.views import CropSpec
from seer_pipe.errors import UserError
from seer_pipe.run import start
from seer_pipe.shards import ShardSet
from tests.objectives.runs import quiet, resumed_from
from tests.objectives.union import joined
from tests.train.helpers import assert_same_run, make_pictures, small

Times = np.ndarray


@st.composite
def plans(draw: st.DrawFn) -> tuple[Plan, Times]:
    """A plan, and how often each sample of its set comes in an epoch."""
    counts = draw(st.lists(st.integers(0, 20), min_size=1, max_size=8))
    total = sum(counts)
    assume(total)
    times = np.array(draw(st.lists(st.integers(0, 5), min_size=total, max_size=total)), np.int64)
    excluded = sorted(draw(st.sets(st.integers(0, total - 1), max_size=3)))
    listed = np.flatnonzero(times != 1)
    repeats = Repeats(listed, times[listed])
    times[excluded] = 0
    lanes, share = draw(st.integers(1, 6)), draw(st.integers(1, 3))
    assume(times.sum() >= lanes * share)
    chunk, window = draw(st.none() | st.integers(1, 12)), draw(st.integers(1, 6))
    plan = Plan(counts, lanes * share, seed=draw(st.integers(0, 2**32)), excluded=excluded, repeats=repeats,
                lanes=lanes, chunk=chunk, window=window)  # fmt: skip
    return plan, times


def whole_pass(plan: Plan, epoch: int) -> Places:
    steps = epoch * plan.steps_per_epoch + np.arange(plan.steps_per_epoch)
    return plan.locate(np.repeat(steps, plan.batch), np.tile(np.arange(plan.batch), len(steps)))


def every_copy(times: Times) -> set[tuple[int, int]]:
    return {(sample, copy) for sample, count in enumerate(times.tolist()) for copy in range(count)}


def copies(places: Places) -> list[tuple[int, int]]:
    return list(zip(places.sample.tolist(), places.copy.tolist(), strict=True))


@given(plans())
def test_a_pass_holds_every_copy_once_but_for_less_than_a_batch(drawn: tuple[Plan, Times]) -> None:
    plan, times = drawn
    assert plan.total == times.sum()
    for epoch in (0, 1, 7):
        places = whole_pass(plan, epoch)
        seen = set(copies(places))
        assert len(seen) == len(places) == plan.total - plan.dropped
        assert seen <= every_copy(times)
        assert 0 <= plan.dropped < plan.batch
        assert len(set(places.drawn_as(plan.samples).tolist())) == len(places)  # no two views are drawn alike


@given(plans())
def test_chunks_and_places_cover_every_copy(drawn: tuple[Plan, Times]) -> None:
    plan, times = drawn
    parts = [plan.members(chunk) for chunk in range(plan.chunks)]
    assert sorted(pair for part in parts for pair in copies(part)) == sorted(every_copy(times))
    by_number = plan.places(np.arange(plan.total))
    assert set(copies(by_number)) == every_copy(times)
    for places in (by_number, plan.substitute(3, np.arange(plan.batch), 2)):
        for row, (chunk, inside) in enumerate(zip(places.chunk.tolist(), places.inside.tolist(), strict=True)):
            member = parts[chunk][[inside]]
            assert copies(member) == copies(places[[row]])
            assert (member.shard[0], member.index[0]) == (places.shard[row], places.index[row])


@given(plans(), st.integers(0, 50), st.data())
def test_every_world_size_sees_the_same_batch_at_once_from_any_step(
    drawn: tuple[Plan, Times], step: int, data: st.DataObject
) -> None:
    plan, _ = drawn
    world = data.draw(st.sampled_from([w for w in range(1, plan.batch + 1) if plan.batch % w == 0]))
    alone = copies(plan.locate(step, np.arange(plan.batch)))
    shared = [copies(plan.locate(step, slots_of(rank, world, plan.batch))) for rank in range(world)]
    assert [pair for part in shared for pair in part] == alone
    steps = np.arange(max(0, step - 3), step + 1)  # as a run reads on that began before
    together = plan.locate(np.repeat(steps, plan.batch), np.tile(np.arange(plan.batch), len(steps)))
    assert copies(together)[-plan.batch :] == alone


def test_without_repeats_it_is_the_order_that_it_was() -> None:
    plain, none = Plan([40, 30], 8, seed=1), Plan([40, 30], 8, seed=1, repeats=Repeats())
    assert plain.fingerprint == none.fingerprint
    left = Plan([40, 30], 8, seed=1, repeats=Repeats(np.array([3, 50]), np.array([0, 0])))
    assert left.fingerprint == Plan([40, 30], 8, seed=1, excluded=[3, 50]).fingerprint
    prints = {
        Plan([40, 30], 8, seed=1, repeats=Repeats(np.array([sample]), np.array([times]))).fingerprint
        for sample in (3, 4) for times in (2, 3)
    }  # fmt: skip
    assert len(prints | {plain.fingerprint}) == 5


def test_copies_meet_as_any_two_images_of_a_shuffle_do() -> None:
    twice = np.arange(0, 4000, 20)
    plan = Plan([500] * 8, 60, seed=2, repeats=Repeats(twice, np.full(len(twice), 2)))
    met = 0
    for epoch in range(60):
        places = whole_pass(plan, epoch)
        step = np.arange(len(places)) // plan.batch
        first, second = (
            dict(zip(places.sample[rows].tolist(), step[rows].tolist(), strict=True))
            for rows in (places.copy == 0, places.copy == 1)
        )
        met += sum(first.get(sample, -1) == second.get(sample, -2) for sample in twice.tolist())
    assert met == pytest.approx(60 * len(twice) * (plan.batch - 1) / (plan.total - 1), rel=0.25)


def test_four_bytes_for_each_sample_that_comes_several_times() -> None:
    samples = np.arange(0, 1_000_000, 5)
    kept = Copies(samples, np.random.default_rng(0).integers(2, 40, len(samples)))
    held = sum(value.nbytes for value in vars(kept).values())
    assert held < 4 * len(samples) + 2000


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), [9, 0, 4])


def repeated(pictures: Path, file: Path, times: list[int]) -> str:
    write_repeats(file, ShardSet.open(pictures), Repeats(np.arange(len(times)), np.array(times)))
    return str(file)


def test_a_file_of_repeats_comes_back_and_a_wrong_one_is_named(pictures: Path, tmp_path: Path) -> None:
    shards, file = ShardSet.open(pictures), tmp_path / "repeats.parquet"
    url = repeated(pictures, file, [1, 0, 3] + [1] * 9 + [2])
    found = read_repeats(url, shards)
    assert (found.sample.tolist(), found.times.tolist()) == ([1, 2, 12], [0, 3, 2])
    with pytest.raises(UserError, match=r"data\.repeats: .*other\.parquet: no such file"):
        read_repeats(str(tmp_path / "other.parquet"), shards)
    other = ShardSet.open(make_pictures(tmp_path / "other", [13]))
    with pytest.raises(UserError, match=r"was not made for .*other as it is now"):
        read_repeats(url, other)
    table = pq.read_table(file)
    pq.write_table(table.take(pa.array([1, 0, 2])), file)
    with pytest.raises(UserError, match="numbers that are not rising"):
        read_repeats(url, shards)
    file.write_bytes(b"none")
    with pytest.raises(UserError, match="not readable"):
        read_repeats(url, shards)
    with pytest.raises(UserError, match=r"of several sets each of the sources has its own"):
        small(pictures, data={"path": None, "sources": [{"path": str(pictures), "weight": 1}], "repeats": url})


def test_two_copies_in_a_batch_are_one_image_seen_twice(pictures: Path, tmp_path: Path) -> None:
    url = repeated(pictures, tmp_path / "repeats.parquet", [4] * 13)
    shards, plan = open_data(Data(path=str(pictures), repeats=url), 26, 0)
    assert plan.total == 52
    loader = Loader(shards, plan, slots_of(0, 1, 26), [CropSpec(1, 16, (0.3, 1.0))], seed=0)
    try:
        batches = list(loader.batches(0, 2))
    finally:
        loader.close()
    samples = torch.cat([batch.samples for batch in batches])
    crops = torch.cat([batch.crops[0] for batch in batches])
    assert sorted(samples.tolist()) == sorted(list(range(13)) * 4)
    assert len(batches[0].samples.unique()) < 26
    assert len(torch.unique(crops.flatten(1), dim=0)) == 52


def test_each_of_several_sets_has_its_own(pictures: Path, tmp_path: Path) -> None:
    url = repeated(pictures, tmp_path / "repeats.parquet", [2] * 13)
    sources = [{"path": str(pictures), "weight": 1, "repeats": url}, {"path": str(pictures), "weight": 1}]
    _, plan = open_data(small(pictures, data={"path": None, "sources": sources}).data, 8, 0)
    assert isinstance(plan, Mix)
    assert [one.total for one in plan.plans] == [26, 13]
    places = plan.locate(np.repeat(np.arange(6), 8), np.tile(np.arange(8), 6))
    further = places[places.copy > 0]
    assert len(further)
    assert further.sample.max() < 13
    assert further.drawn_as(plan.samples).min() >= plan.samples == 26


def test_a_bank_knows_an_image_that_is_twice_in_a_batch(pictures: Path, tmp_path: Path) -> None:
    """A run on copies, of which every batch of 8 has some twice, is resumed bit for bit; other repeats are refused."""
    url = repeated(pictures, tmp_path / "repeats.parquet", [0] * 8 + [4] * 5)
    config = small(
        pictures,
        data={"repeats": url},
        views={"crops": [{"count": 1, "size": 16, "scale": [0.3, 1]}]},
        model={"name": "tiny"},
        objective={"name": "npid", "head": {"hidden": [], "dim": 8}, "negatives": 4},
        train={"images": 48, "checkpoint_every": 1, "keep": 100},
    )
    with joined():
        assert start(config, tmp_path / "run", say=quiet)
        assert_same_run(tmp_path / "run", resumed_from(config, tmp_path / "run", 3))
        repeated(pictures, tmp_path / "repeats.parquet", [0] * 8 + [3] * 5)
        with pytest.raises(UserError, match="another order of its images"):
            start(config, tmp_path / "run-from-3", say=quiet)
