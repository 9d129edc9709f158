"""Schedules: exact ends, monotone pieces, and the published values."""

import math
from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from seer_pipe.optim.schedule import constant_learning_rate, learning_rate, weight_decay

rates = st.floats(0, 100)
lengths = st.integers(1, 10**10)


def plan(peak: float, final: float, warmup: int, rest: int, start: float) -> Callable[[int], float]:
    total = warmup + rest
    return partial(learning_rate, peak=peak, final=final, warmup_images=warmup, total_images=total, warmup_start=start)


@given(peak=rates, final=rates, warmup=st.integers(0, 10**10), rest=lengths, start=rates)
def test_the_ends_are_exact(peak: float, final: float, warmup: int, rest: int, start: float) -> None:
    rate = plan(peak, final, warmup, rest, start)
    assert rate(0) == (start if warmup else pytest.approx(peak))
    assert rate(warmup) == pytest.approx(peak)
    assert rate(warmup + rest) == final
    assert rate(warmup + 2 * rest) == final


@given(st.data(), lengths, lengths)
def test_it_rises_then_falls_within_its_bounds(data: st.DataObject, warmup: int, rest: int) -> None:
    start, final = data.draw(st.floats(0, 1)), data.draw(st.floats(0, 1))
    rate = plan(2.0, final, warmup, rest, start)
    a, b = sorted(data.draw(st.tuples(*[st.integers(0, warmup + rest)] * 2)))
    if b <= warmup:
        assert start <= rate(a) <= rate(b) + 1e-12 <= 2 + 2e-12
    if a >= warmup:
        assert 2 + 2e-12 >= rate(a) + 1e-12 >= rate(b) >= final


@given(st.floats(0, 1), st.floats(0, 1), lengths, st.data())
def test_decay_goes_from_its_start_to_its_end(start: float, final: float, total: int, data: st.DataObject) -> None:
    decay = partial(weight_decay, start=start, final=final, total_images=total)
    assert decay(0) == pytest.approx(start, abs=1e-12)
    assert decay(total) == decay(2 * total) == final
    a, b = sorted(data.draw(st.tuples(*[st.integers(0, total)] * 2)))
    assert (decay(b) - decay(a)) * (final - start) >= -1e-12
    assert weight_decay(a, start=start, final=start, total_images=total) == start


def test_published_values() -> None:
    epoch = 1281167
    rate = plan(4.8, 0.0048, 10 * epoch, 90 * epoch, 0.3)
    assert rate(5 * epoch) == pytest.approx(0.3 + 4.5 / 2)
    assert rate(55 * epoch) == pytest.approx((4.8 + 0.0048) / 2)
    quarter = 0.0048 + (4.8 - 0.0048) * (1 + math.cos(math.pi / 4)) / 2
    assert rate(10 * epoch + 90 * epoch // 4) == pytest.approx(quarter, rel=1e-6)


def test_a_cosine_from_the_start_is_cut_by_the_warm_up() -> None:
    """SEER 10B by VISSL: 4.3648 % of warm-up, after which the rate is 0.995 of the peak, and from there the cosine."""
    total, warmup = 1_000_000_000, 43_648_000
    rate = partial(learning_rate, peak=9.3, final=0.0093, warmup_images=warmup, total_images=total, warmup_start=0.15,
                   cosine_start=0)  # fmt: skip
    assert rate(warmup // 2) == pytest.approx((0.15 + 9.3) / 2)
    assert rate(warmup) / 9.3 == pytest.approx(0.995, abs=5e-4)
    for images in (warmup, total // 2, total - 1):
        expected = 0.0093 + (9.3 - 0.0093) * (1 + math.cos(math.pi * images / total)) / 2
        assert rate(images) == pytest.approx(expected)
    assert rate(total) == 0.0093


def test_the_constant_variant_warms_up_and_stays() -> None:
    rate = partial(constant_learning_rate, peak=9.6, warmup_images=1000, warmup_start=0.15)
    assert rate(0) == 0.15
    assert rate(500) == pytest.approx((0.15 + 9.6) / 2)
    assert {rate(images) for images in (1000, 10**9, 10**12)} == {9.6}
