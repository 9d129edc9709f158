"""Sound as a picture: power over time and frequency, in decibels, by torch's own Fourier transform.

Of ``linear`` it is AVID's input (Morgado et al. 2021, arXiv 2004.12943, and its code): windows of 1024 samples at
24 kHz, every 10 ms; the constant part and the means of each two of the other 512 bands; decibels, at most 100 below
the loudest. AVID normalises each band by a mean and a deviation that were measured on its data; here all bands have the
same two constants, which are of no data: BatchNorm behind the first convolution takes out what they leave.
"""

from __future__ import annotations

import math
from functools import cache

import torch
from torch import Tensor

from seer_pipe.config import Sound

WINDOWS = {"linear": (1024, 1024), "log_mel": (512, 400)}  # samples of a transform, and of its Hann window
COLUMNS = 100  # a second
QUIETEST = 1e-10  # power that counts as silence
RANGE = 100.0  # decibels under the loudest that are kept


def spectrograms(waves: Tensor, sound: Sound) -> Tensor:
    """Of mono sounds [n, samples] of ``sound.rate`` Hz and amplitudes up to 1, float32: [n, *sound.shape]."""
    size, window = WINDOWS[sound.spectrum]
    _, columns, _ = sound.shape
    hann = torch.hann_window(window, dtype=waves.dtype, device=waves.device)
    bands = torch.stft(
        waves, size, sound.rate // COLUMNS, window, hann, center=True, pad_mode="constant", return_complex=True
    )
    power = torch.view_as_real(bands[..., :columns]).square().sum(-1)  # [n, bands, columns]
    if sound.spectrum == "linear":
        power = torch.cat([power[:, :1], power[:, 1:].unflatten(1, (-1, 2)).mean(2)], dim=1)
    else:
        power = mel_filters(sound.bands, size, sound.rate).to(power) @ power
    decibels = 10 * power.clamp_min(QUIETEST).log10()
    kept = torch.maximum(decibels, decibels.amax((1, 2), keepdim=True) - RANGE)
    return ((kept - sound.level) / sound.spread).transpose(1, 2).unsqueeze(1).contiguous()


@cache
def mel_filters(bands: int, size: int, rate: int) -> Tensor:
    """Triangles [bands, size // 2 + 1] of height 1 between equal steps of mel = 2595 log10(1 + f / 700) (O'Shaughnessy
    1987), from 0 to half the ``rate``; float64."""
    mel = torch.linspace(0, 2595 * math.log10(1 + rate / 1400), bands + 2, dtype=torch.float64)
    edges = 700 * (10 ** (mel / 2595) - 1)
    frequencies = torch.arange(size // 2 + 1, dtype=torch.float64) * rate / size
    rising = (frequencies - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - frequencies) / (edges[2:] - edges[1:-1])[:, None]
    return torch.minimum(rising, falling).clamp_min(0)
