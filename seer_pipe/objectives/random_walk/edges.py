"""Which edges a walk lacks, drawn on the device: the same on every one, for whichever ranks clips are spread over."""

from __future__ import annotations

import random

import torch
from torch import Tensor

_LOW, _APART = 0xFFFFFFFF, 0x9E3779B9  # the lower 32 bits; 2^32 / the golden ratio, as in Weyl sequences


def dropped(seed: int, first: int, shape: tuple[int, ...], share: float, device: torch.device) -> Tensor:
    """Whether each edge is, bool of ``shape``, whose first dimension is that of clips: a function of the seed and of a
    clip's number in the run, which is ``first`` and those after it, and of nothing else."""
    low, high = (random.Random(f"random_walk {seed} {half}").getrandbits(32) for half in ("low", "high"))
    clips = torch.arange(first, first + shape[0], device=device)
    keys = _mixed(_mixed((clips & _LOW) ^ low) ^ (clips >> 32) ^ high)
    edges = torch.arange(torch.Size(shape[1:]).numel(), device=device)
    drawn = _mixed((keys[:, None] + _APART * edges) & _LOW)
    return (drawn < round(share * 2**32)).view(shape)


def _mixed(x: Tensor) -> Tensor:
    """MurmurHash3's last step, of 32 bits in int64: each bit of x changes about half of those that come out."""
    for shift, factor in ((16, 0x85EBCA6B), (13, 0xC2B2AE35)):
        x = ((x ^ (x >> shift)) * factor) & _LOW  # int64 wraps, which leaves the lower bits as they are
    return x ^ (x >> 16)
