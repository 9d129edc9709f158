"""The order held against a full shuffle: within a batch, between batches, and over epochs."""

import numpy as np
import pytest

from seer_pipe.data.order import Plan

EPOCHS = 600
#: Number of samples, and batch, that have factors in common with everything, as round numbers do.
ROUND = [(1_024_000, 256), (1_280_000, 256), (1 << 20, 1024), (50_000, 500)]


def batches(plan: Plan, steps: np.ndarray) -> np.ndarray:
    """The samples of each of ``steps``: [len(steps), B]."""
    places = plan.locate(np.repeat(steps, plan.batch), np.tile(np.arange(plan.batch), len(steps)))
    return places.sample.reshape(len(steps), plan.batch)


def epochs(plan: Plan, count: int) -> np.ndarray:
    """The step of its epoch that each sample is in: [count, N]; -1 where the epoch leaves it out."""
    steps = np.full((count, plan.total), -1, np.int16)
    for number in range(count):
        turns = np.arange(plan.steps_per_epoch)
        steps[number, batches(plan, number * plan.steps_per_epoch + turns)] = turns[:, None]
    return steps


def shuffles(total: int, batch: int, count: int) -> np.ndarray:
    """The same of full shuffles, for a set that the batch divides."""
    random = np.random.default_rng(1)
    return np.stack([(random.permutation(total) // batch).astype(np.int16) for _ in range(count)])


def together(steps: np.ndarray, distance: int) -> np.ndarray:
    """In how many epochs samples i and i + distance share a batch: [N - distance]."""
    return ((steps[:, distance:] == steps[:, :-distance]) & (steps[:, distance:] >= 0)).sum(0)


@pytest.fixture(scope="module")
def orders() -> tuple[Plan, np.ndarray, np.ndarray]:
    """Chunks of 8 in 16 lanes of 4 tracks, of 8 chunks each: everything a power of two, and no left-over."""
    plan = Plan([256] * 16, 16, seed=11, chunk=8, window=4)
    return plan, epochs(plan, EPOCHS), shuffles(plan.total, plan.batch, EPOCHS)


def test_neighbours_meet_as_in_a_shuffle_at_every_distance(orders: tuple[Plan, np.ndarray, np.ndarray]) -> None:
    plan, ours, full = orders
    expected = EPOCHS * (plan.batch - 1) / (plan.total - 1)
    apart = [*range(8, 65), *range(72, 1024, 8), 2048]  # the multiples of a chunk above all
    rates = np.array([together(ours, d).mean() / expected for d in apart])
    shuffled = np.array([together(full, d).mean() / expected for d in apart])
    assert abs(rates - 1).max() < 0.1
    assert rates.mean() == pytest.approx(1, abs=0.02)
    assert rates.std() < 2 * shuffled.std()
    for distance in range(1, 8):  # two of one chunk do not meet; others do
        assert together(ours, distance).mean() / expected == pytest.approx(distance / 8, abs=0.1)


def test_pairs_meet_as_often_as_in_a_shuffle_and_none_much_more(orders: tuple[Plan, np.ndarray, np.ndarray]) -> None:
    _, ours, full = orders

    def counts(steps: np.ndarray) -> np.ndarray:
        few = steps[:, 3::16]  # of one chunk at most one, all at the same offset: these would meet if any did
        first, second = np.triu_indices(few.shape[1], 1)
        return np.concatenate(
            [
                ((few[:, a] == few[:, b]) & (few[:, a] >= 0)).sum(0)
                for a, b in zip(np.array_split(first, 8), np.array_split(second, 8), strict=True)
            ]
        )

    met, meant = counts(ours), counts(full)
    assert met.mean() == pytest.approx(meant.mean(), rel=0.03)
    assert met.var() / met.mean() == pytest.approx(meant.var() / meant.mean(), abs=0.05)
    assert met.max() <= meant.max() + 2


@pytest.mark.parametrize(("total", "batch"), ROUND)
def test_round_sizes_align_nothing(total: int, batch: int) -> None:
    """Images of a batch are at all offsets from each other, whatever divides chunk, lane and epoch."""
    plan = Plan([1000] * (total // 1000) + ([total % 1000] if total % 1000 else []), batch, seed=2)
    random = np.random.default_rng(0)
    samples = batches(plan, random.integers(0, 50 * plan.steps_per_epoch, 12_800 // batch))
    for divisor in {2, 4, 8, 32, 128, plan.chunk, 1000} - {1}:
        residues = np.stack([np.bincount(row, minlength=divisor) for row in samples % divisor])
        pairs = (residues * (residues - 1)).sum() / (batch * (batch - 1) * len(samples))
        assert pairs * divisor == pytest.approx(1, abs=0.3 if divisor == 1000 else 0.08)


def deviations(plan: Plan, classes: int, count: int) -> np.ndarray:
    """How far the classes of each batch of ``count`` epochs are from their shares of a sorted set: [epochs, S, C]."""
    label = np.arange(plan.total) * classes // plan.total
    expected = plan.batch * np.bincount(label) / plan.total
    found = np.empty((count, plan.steps_per_epoch, classes))
    for number in range(count):
        for turn, row in enumerate(batches(plan, number * plan.steps_per_epoch + np.arange(plan.steps_per_epoch))):
            found[number, turn] = np.bincount(label[row], minlength=classes) - expected
    return found


def correlation(found: np.ndarray, distance: int) -> float:
    return float((found[:, distance:] * found[:, :-distance]).mean() / (found**2).mean())


def ten_steps(found: np.ndarray, plan: Plan) -> float:
    """Variance of the classes of ten steps in a row, of a shuffle's."""
    tens = found[:, : plan.steps_per_epoch // 10 * 10]
    tens = tens.reshape(len(found), -1, 10, found.shape[-1]).sum(2)
    shares = 1 / found.shape[-1]
    shuffled = 10 * plan.batch * shares * (1 - shares) * (1 - 10 * plan.batch / plan.total)
    return float((tens**2).mean() / shuffled)


@pytest.mark.parametrize(
    ("total", "batch", "count"), [(9469, 256, 60), (9469, 64, 30), (50_000, 500, 10), (60_000, 16, 2)]
)
def test_batches_of_a_sorted_set_are_as_different_as_a_shuffle_s(total: int, batch: int, count: int) -> None:
    plan = Plan([1000] * (total // 1000) + [total % 1000], batch, seed=4)
    found = deviations(plan, 10, count)
    assert plan.correlation[1] < 0.05
    for distance in (1, 2, 5, 15, 30):
        assert abs(correlation(found, distance)) < 0.05
    assert ten_steps(found, plan) == pytest.approx(1, abs=0.2)


@pytest.mark.parametrize("options", [{"window": 1}, {"window": 4}, {"window": 8}, {"lanes": 8, "window": 16}])
def test_the_correlation_that_remains_is_the_one_that_is_told(options: dict[str, int]) -> None:
    plan = Plan([1024] * 60, 32, seed=5, chunk=32, **options)
    found = deviations(plan, 12, 3)
    following, most = plan.correlation
    assert correlation(found, 1) == pytest.approx(following, abs=0.03)
    highest = max(correlation(found, distance) for distance in range(1, 40))
    assert most / 2 < highest < most + 0.03


def test_a_set_of_single_samples_is_shuffled_in_full() -> None:
    assert Plan([9469], 256, seed=0).chunk == 1
    assert Plan([100], 8, seed=0).correlation == (0.0, 0.0)
