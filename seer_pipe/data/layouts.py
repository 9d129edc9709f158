"""Crops whose geometry is known: what is made of a finished crop, and the label that says how."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seer_pipe.data.views import CropSpec

TURNS = 4


def lay_out(crops: Sequence[Tensor], specs: Sequence[CropSpec]) -> list[Tensor]:
    """The crops that training sees, of those that were drawn: one [n, 3, size, size] per place of ``specs``, in order.

    With quarter turns a crop gives four: itself, and turned by 90, 180 and 270 degrees against the clock, as
    `torch.rot90` does it: pixels change their places alone. Their memory layout is the crop's.
    """
    kept = []
    for crop, spec in zip(crops, _each(specs), strict=True):
        kept.append(crop)
        if spec.quarter_turns:
            kept += [torch.empty_like(crop).copy_(torch.rot90(crop, turn, (2, 3))) for turn in range(1, TURNS)]
    return kept


def labels(specs: Sequence[CropSpec], images: int, device: torch.device | str = "cpu") -> Tensor | None:
    """The quarter turns of each crop of `lay_out` and each image, [crops, images] int64; None where nothing is turned.

    A crop of a spec without turns has label 0.
    """
    if not any(spec.quarter_turns for spec in specs):
        return None
    turns = [turn for spec in _each(specs) for turn in range(TURNS if spec.quarter_turns else 1)]
    return torch.tensor(turns, device=device)[:, None].expand(-1, images)


def _each(specs: Sequence[CropSpec]) -> list[CropSpec]:
    """The spec of each crop that is drawn."""
    return [spec for spec in specs for _ in range(spec.count)]
