"""Spectrograms against their definition in float64, by numpy's Fourier transform, window by window."""

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from seer_pipe.config import Sound
from seer_pipe.data.sound import mel_filters, spectrograms

Array = npt.NDArray[np.float64]


def power(wave: Array, size: int, length: int, hop: int, columns: int) -> Array:
    """Of each band and column [size // 2 + 1, columns]: silence before and after, a periodic Hann window in the middle
    of each transform."""
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(length) / length)
    hann = np.pad(hann, (size - length) // 2)
    padded = np.pad(wave, size // 2)
    parts = [padded[column * hop : column * hop + size] * hann for column in range(columns)]
    return np.abs(np.fft.rfft(parts, axis=1)).T ** 2


def linear(wave: Array, columns: int) -> Array:
    found = power(wave, 1024, 1024, 240, columns)
    return np.concatenate([found[:1], (found[1::2] + found[2::2]) / 2])


def log_mel(wave: Array, columns: int, bands: int) -> Array:
    found = power(wave, 512, 400, 160, columns)
    edges = 700 * (10 ** (np.linspace(0, 2595 * np.log10(1 + 8000 / 700), bands + 2) / 2595) - 1)
    rows = []
    for low, middle, high in zip(edges, edges[1:], edges[2:], strict=False):
        weights = np.interp(np.arange(257) * 16000 / 512, [low, middle, high], [0, 1, 0])
        rows.append(weights @ found)
    return np.stack(rows)


def finished(found: Array, sound: Sound) -> Array:
    decibels = 10 * np.log10(np.maximum(found, 1e-10))
    return ((np.maximum(decibels, decibels.max() - 100) - sound.level) / sound.spread).T


@pytest.mark.parametrize("spectrum", ["linear", "log_mel"])
def test_spectrograms_are_their_definition(spectrum: str) -> None:
    sound = Sound(spectrum=spectrum, seconds=0.5, bands=64, level=-10, spread=15)  # type: ignore[arg-type]
    times = np.arange(round(0.5 * sound.rate)) / sound.rate
    noise = np.random.default_rng(0).normal(size=len(times))
    waves = [0.3 * np.sin(2 * np.pi * 440 * times), 0.1 * noise, np.where(times < 0.2, noise, 0), 1e-6 * noise]
    found = spectrograms(torch.from_numpy(np.stack(waves)).float(), sound)
    exact = spectrograms(torch.from_numpy(np.stack(waves)), sound)
    assert tuple(found.shape) == (4, *sound.shape)
    for wave, row, precise in zip(waves, found, exact, strict=True):
        expected = finished(linear(wave, 50) if spectrum == "linear" else log_mel(wave, 50, 64), sound)
        np.testing.assert_allclose(precise[0], expected, rtol=0, atol=1e-9)
        loud = expected > expected.max() - 60 / sound.spread  # below, float32's rounding of the loud is heard
        np.testing.assert_allclose(row[0].numpy()[loud], expected[loud], rtol=0, atol=0.01)


def test_avids_shape_and_silence() -> None:
    assert Sound().shape == (1, 200, 257)
    silent = spectrograms(torch.zeros(2, 48_000), Sound())
    assert (silent == (-100 + 20) / 20).all()


def test_the_loudest_tone_has_about_48_decibels() -> None:
    """Half the sum of the window, squared: (1024 / 4)², of which the two bands of a pair have the mean."""
    times = torch.arange(48_000) / 24_000
    loudest = spectrograms(torch.sin(2 * torch.pi * 1500 * times)[None], Sound(level=0, spread=1)).max()
    assert 44 < loudest < 48.2


@given(st.integers(8, 100))
def test_every_mel_band_hears_something_and_none_more_than_its_height(bands: int) -> None:
    filters = mel_filters(bands, 512, 16_000)
    assert filters.shape == (bands, 257)
    assert (filters.sum(1) > 0).all()
    assert filters.max() <= 1
    assert (filters.sum(0) <= 1 + 1e-9).all()  # neighbours share a tone
