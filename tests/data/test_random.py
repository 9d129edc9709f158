import warnings

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seer_pipe.data.random import derive_key, mix64, uniform

words = st.integers(0, 2**64 - 1)


KEYS = (
    0x5EE12B00F7A92D61,
    0xC3C3783A1CD9ABF4,
    [4852624426118419748, 17546884499958629582, 5461916012554820619],
    [0.7387212353941512, 0.032546750039286976, 0.6782723293937278],
)


def test_values_never_change():
    """Runs are repeated years later by these numbers."""
    assert mix64(np.uint64(0x9E3779B97F4A7C15)) == 0xE220A8397B1DCDAF  # SplitMix64 of seed 0, as published
    assert [int(mix64(np.uint64((i + 1) * 0x9E3779B97F4A7C15 % 2**64))) for i in (1, 2)] == [
        0x6E789E6AA1B965F4,
        0x06C45D188009454F,
    ]
    assert int(derive_key()) == KEYS[0]
    assert int(derive_key(0)) == KEYS[1]
    assert derive_key(31, 2, np.arange(3)).tolist() == KEYS[2]
    assert uniform(derive_key(31), np.arange(3)).tolist() == KEYS[3]


def test_uniform_is_the_published_generator():
    assert uniform(np.uint64(0), 0) == (0xE220A8397B1DCDAF >> 11) / 2**53


@given(words, words)
def test_mixer_is_injective(a, b):
    assert (mix64(np.uint64(a)) == mix64(np.uint64(b))) == (a == b)


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=2, max_size=4), st.data())
def test_order_and_number_of_parts_matter(parts, data):
    other = data.draw(st.permutations(parts))
    assert (derive_key(*parts) == derive_key(*other)) == (parts == other)
    assert derive_key(*parts) != derive_key(*parts, 0)
    assert derive_key(*parts) != derive_key(*parts[:-1])


def test_arrays_scalars_and_broadcasting_agree():
    a, b = np.arange(5), np.arange(7, dtype=np.int32)
    table = derive_key(3, a[:, None], b)
    assert table.shape == (5, 7)
    assert table.dtype == np.uint64
    assert table[4, 6] == derive_key(3, 4, 6) == derive_key(np.int64(3), np.uint8(4), 6)
    assert derive_key(-1) == derive_key(2**64 - 1) == derive_key(np.array(-1))
    u = uniform(table[..., None], np.arange(3))
    assert u.shape == (5, 7, 3)
    assert u[2, 3, 1] == uniform(derive_key(3, 2, 3), 1)


@pytest.mark.parametrize("part", [1.5, np.array([0.5]), np.array(["a"])])
def test_only_integers_make_keys(part):
    with pytest.raises(TypeError):
        derive_key(part)


def test_overflow_is_silent():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        uniform(derive_key(2**64 - 1, -1), 2**63)


def chi_square(counts):
    expected = counts.sum() / counts.size
    return float(((counts - expected) ** 2 / expected).sum()), counts.size - 1


@pytest.mark.parametrize(
    "numbers",
    [
        lambda n: uniform(derive_key(1), np.arange(n)),  # along a stream
        lambda n: uniform(derive_key(1, np.arange(n)), 0),  # over neighbouring keys
        lambda n: uniform(derive_key(np.arange(n), 5), 3),  # over an earlier part
        lambda n: uniform(derive_key(0, np.arange(n) << 40), 7),  # over high bits
    ],
)
def test_uniform_and_independent(numbers):
    u = numbers(1 << 18)
    assert u.min() >= 0
    assert u.max() < 1
    assert abs(u.mean() - 0.5) < 5 / np.sqrt(12 * u.size)
    for counts in (
        np.bincount((u * 256).astype(int), minlength=256),
        np.bincount((u * 2**53).astype(np.int64) & 255, minlength=256),  # the low bits too
        np.bincount((u[::2] * 16).astype(int) * 16 + (u[1::2] * 16).astype(int), minlength=256),  # neighbours
    ):
        value, freedom = chi_square(counts)
        assert abs(value - freedom) < 5 * np.sqrt(2 * freedom)


def test_streams_of_neighbouring_keys_are_uncorrelated():
    u = uniform(derive_key(9, np.arange(64))[:, None], np.arange(4096))
    correlation = np.corrcoef(u) - np.eye(64)
    assert np.abs(correlation).max() < 5.5 / np.sqrt(4096)
