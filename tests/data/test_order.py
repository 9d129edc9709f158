"""The order: a bijection in every epoch, the same for every world size, at once at any step."""

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from seer_pipe.data.order import Plan, permute, slots_of
from seer_pipe.errors import UserError

COUNTS = st.lists(st.integers(0, 40), min_size=1, max_size=12)
SEEDS = st.integers(0, 2**32)

FROZEN_PERMUTATION = [3, 1, 0, 9, 2, 7, 5, 4, 8, 6]
FROZEN_STEP = [38, 16, 18, 32, 11, 4, 7, 25]


@st.composite
def plans(draw: st.DrawFn) -> Plan:
    counts = draw(COUNTS)
    lanes, share = draw(st.integers(1, 8)), draw(st.integers(1, 4))
    assume(sum(counts) >= lanes * share)
    chunk, window = draw(st.none() | st.integers(1, 12)), draw(st.integers(1, 9))
    return Plan(counts, lanes * share, seed=draw(SEEDS), lanes=lanes, chunk=chunk, window=window)


def whole_pass(plan: Plan, epoch: int) -> np.ndarray:
    steps = epoch * plan.steps_per_epoch + np.arange(plan.steps_per_epoch)
    places = plan.locate(np.repeat(steps, plan.batch), np.tile(np.arange(plan.batch), len(steps)))
    return places.sample.reshape(len(steps), plan.batch)


@given(st.integers(1, 3000), st.integers(0, 2**64 - 1))
def test_permute_is_a_bijection(size: int, key: int) -> None:
    assert sorted(permute(np.arange(size), size, key)) == list(range(size))


@given(st.lists(st.tuples(st.integers(1, 10**12), SEEDS), min_size=1, max_size=20), st.data())
def test_permute_takes_each_element_by_itself(domains: list[tuple[int, int]], data: st.DataObject) -> None:
    sizes, keys = np.array([d[0] for d in domains]), np.array([d[1] for d in domains])
    at = np.array([data.draw(st.integers(0, n - 1)) for n in sizes.tolist()])
    together = permute(at, sizes, keys)
    assert together.tolist() == [int(permute(x, n, k)) for x, n, k in zip(at, sizes, keys, strict=True)]
    assert np.all((together >= 0) & (together < sizes))


def test_the_order_never_changes_between_versions() -> None:
    """A change here breaks the resume of every run in the world: raise ORDER_VERSION with it."""
    assert permute(np.arange(10), 10, 1234).tolist() == FROZEN_PERMUTATION
    plan = Plan([7, 0, 1, 20, 12], 8, seed=5, chunk=4, window=3)
    assert plan.locate(3, np.arange(8)).sample.tolist() == FROZEN_STEP


@given(plans())
def test_a_pass_holds_every_sample_once_but_for_less_than_a_batch(plan: Plan) -> None:
    for epoch in (0, 1, 7):
        seen = whole_pass(plan, epoch)
        assert len(np.unique(seen)) == seen.size == plan.total - plan.dropped
        assert 0 <= plan.dropped < plan.batch
        assert seen.min() >= 0
        assert seen.max() < plan.total


@given(plans(), st.integers(0, 50), st.data())
def test_every_world_size_sees_the_same_batch(plan: Plan, step: int, data: st.DataObject) -> None:
    world = data.draw(st.sampled_from([w for w in range(1, plan.batch + 1) if plan.batch % w == 0]))
    alone = plan.locate(step, slots_of(0, 1, plan.batch)).sample
    shared = [plan.locate(step, slots_of(r, world, plan.batch)).sample for r in range(world)]
    assert np.concatenate(shared).tolist() == alone.tolist()


@given(plans(), st.integers(0, 200))
def test_places_agree_with_each_other(plan: Plan, step: int) -> None:
    slots = np.arange(plan.batch)
    starts = np.cumsum(plan.counts) - plan.counts
    for places in (plan.locate(step, slots), plan.substitute(step, slots, 3)):
        assert np.all(places.index < plan.counts[places.shard])
        assert np.array_equal(starts[places.shard] + places.index, places.sample)
        again = plan.places(places.sample)
        assert np.array_equal(again.chunk, places.chunk)
        assert np.array_equal(again.inside, places.inside)
        for sample, chunk, inside in zip(places.sample, places.chunk, places.inside, strict=True):
            assert plan.members(int(chunk)).sample[inside] == sample


@given(plans())
def test_chunks_cover_the_set(plan: Plan) -> None:
    samples = np.concatenate([plan.members(chunk).sample for chunk in range(plan.chunks)])
    assert sorted(samples.tolist()) == list(range(plan.total))


@given(plans(), st.integers(0, 100), st.integers(1, 6))
def test_many_steps_at_once_are_the_steps_one_by_one(plan: Plan, first: int, count: int) -> None:
    steps, slots = np.arange(first, first + count), np.arange(plan.batch)
    together = plan.locate(np.repeat(steps, plan.batch), np.tile(slots, count))
    one_by_one = [plan.locate(step, slots).sample for step in steps.tolist()]
    assert np.array_equal(together.sample, np.concatenate(one_by_one))


@given(COUNTS, st.data())
def test_what_is_excluded_is_as_if_it_were_not_there(counts: list[int], data: st.DataObject) -> None:
    total = sum(counts)
    excluded = sorted(data.draw(st.sets(st.integers(0, total - 1), max_size=total - 1))) if total else []
    assume(total)
    kept = np.setdiff1d(np.arange(total), excluded)
    ends = np.cumsum(counts)
    fewer = np.diff(np.searchsorted(kept, [0, *ends])).tolist()
    batch = data.draw(st.integers(1, len(kept)))
    plan, smaller = (Plan(c, batch, seed=7, excluded=e) for c, e in ((counts, excluded), (fewer, [])))
    assert plan.total == len(kept)
    steps = np.repeat(np.arange(plan.steps_per_epoch + 1), batch)
    slots = np.tile(np.arange(batch), plan.steps_per_epoch + 1)
    for places, others in (
        (plan.locate(steps, slots), smaller.locate(steps, slots)),
        (plan.substitute(5, slots, 1), smaller.substitute(5, slots, 1)),
    ):
        assert np.array_equal(places.sample, kept[others.sample])
        assert np.array_equal(places.shard, np.searchsorted(ends, places.sample, side="right"))
        assert np.array_equal(places.index, places.sample - np.append(0, ends)[places.shard])
    members = np.concatenate([plan.members(chunk).sample for chunk in range(plan.chunks)])
    assert sorted(members.tolist()) == kept.tolist()


@settings(max_examples=30)
@given(plans(), st.lists(st.integers(1, 5), min_size=3, max_size=5), st.data())
def test_resuming_with_other_world_sizes_loses_and_repeats_nothing(
    plan: Plan, lengths: list[int], data: st.DataObject
) -> None:
    worlds = [w for w in range(1, plan.batch + 1) if plan.batch % w == 0]
    finished, seen = 0, []
    for length in lengths:  # each a start of the run that ends after some steps
        world = data.draw(st.sampled_from(worlds))
        for step in range(finished, finished + length):
            seen += [plan.locate(step, slots_of(r, world, plan.batch)).sample for r in range(world)]
        finished += length
    straight = [plan.locate(s, np.arange(plan.batch)).sample for s in range(finished)]
    assert np.concatenate(seen).tolist() == np.concatenate(straight).tolist()


def test_passes_differ_and_drop_other_samples() -> None:
    plan = Plan([101, 57, 3], 16, seed=1)
    first, second = whole_pass(plan, 0), whole_pass(plan, 1)
    assert not np.array_equal(first, second)
    dropped = [set(range(plan.total)) - set(p.flat) for p in (first, second)]
    assert dropped[0] != dropped[1]
    assert np.array_equal(whole_pass(plan, 1), second)


def test_a_batch_mixes_as_a_full_shuffle_does() -> None:
    plan = Plan([1000] * 500, 256, seed=3)
    shards = [len(np.unique(plan.locate(s, np.arange(256)).shard)) for s in range(0, 1800, 60)]
    full = 500 * (1 - (1 - 1 / 500) ** 256)  # expected distinct shards of 256 draws
    assert np.mean(shards) > 0.95 * full


@pytest.mark.parametrize("window", [1, 3, 8])
def test_a_lane_has_a_window_of_chunks_open_and_reads_each_from_front_to_end(window: int) -> None:
    plan = Plan([640] * 40, 16, seed=0, chunk=64, window=window)
    steps = np.arange(plan.steps_per_epoch)
    places = plan.locate(steps, np.full(len(steps), 5))
    runs = 0
    opened = np.zeros(len(steps), int)
    for chunk in np.unique(places.chunk):
        mine = np.flatnonzero(places.chunk == chunk)
        at = steps[mine[np.argsort(places.inside[mine])]]
        gaps = np.diff(at)
        for run in np.split(at, np.flatnonzero((gaps <= 0) | (gaps >= 2 * window)) + 1):  # one a round
            opened[run[0] : run[-1] + 1] += 1
            runs += 1
    assert opened.max() <= window + 1  # one may end in the round in which the next begins
    assert runs <= len(steps) / 64 + 3 * window  # cut by the ends of a track and by its start, and nowhere else


def test_a_billion_samples_need_no_list() -> None:
    plan = Plan(np.full(100_000, 10_000), 8192, seed=0)
    step = 900_000_000 // 8192
    places = plan.locate(step, slots_of(17, 512, 8192))
    assert len(np.unique(places.shard)) == 16
    assert np.all(places.index < 10_000)


def test_what_cannot_be_is_refused() -> None:
    with pytest.raises(UserError, match="use 4 or 6 ranks"):
        slots_of(0, 5, 12)
    with pytest.raises(UserError, match="must divide the batch"):
        Plan([100], 12, seed=0, lanes=5)
    with pytest.raises(UserError, match="all 30 images of the set are excluded"):
        Plan([10, 20], 4, seed=0, excluded=range(30))
    with pytest.raises(UserError, match="fewer than a batch"):
        Plan([3, 4], 8, seed=0)


def test_the_fingerprint_tells_plans_apart() -> None:
    base = Plan([64, 64], 8, seed=0)
    others = [
        Plan([64, 65], 8, seed=0),
        Plan([64, 64], 16, seed=0),
        Plan([64, 64], 8, seed=1),
        Plan([64, 64], 8, seed=0, lanes=4),
        Plan([64, 64], 8, seed=0, chunk=3),
        Plan([64, 64], 8, seed=0, window=3),
        Plan([64, 64], 8, seed=0, excluded=[5]),
        Plan([64, 64], 8, seed=0, excluded=[6]),
    ]
    prints = {plan.fingerprint for plan in [base, *others]}
    assert len(prints) == 9
    assert Plan([64, 64], 8, seed=0).fingerprint == base.fingerprint
