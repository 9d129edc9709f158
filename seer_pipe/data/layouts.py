"""Crops whose geometry is known: what is made of a finished crop, and the label that says how."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from seer_pipe.data.views import Crops, CropSpec

TURNS = 4


def lay_out(crops: Sequence[Tensor], specs: Sequence[CropSpec]) -> list[Tensor]:
    """The crops that training sees, of those that were drawn: one [n, 3, size, size] per place of ``specs``, in order.

    With quarter turns a crop gives four: itself, and turned by 90, 180 and 270 degrees against the clock, as
    `torch.rot90` does it: pixels change their places alone. Their memory layout is the crop's.
    """
    kept = []
    for crop, turns in zip(crops, _turns(specs), strict=True):
        kept.append(crop)
        kept += [torch.empty_like(crop).copy_(torch.rot90(crop, turn, (2, 3))) for turn in range(1, turns)]
    return kept


def labels(views: Sequence[Crops], specs: Sequence[CropSpec], device: torch.device | str = "cpu") -> Tensor | None:
    """Of each crop of `lay_out` and each image, [crops, images] int64: its quarter turns, or the cell that a patch of a
    grid is of, row by row from 0, as it is seen. None where all crops are independent; one of these has label 0.
    """
    if all(spec.layout == "independent" for spec in specs):
        return None
    rows = [view.cell + turn for view, turns in zip(views, _turns(specs), strict=True) for turn in range(turns)]
    return torch.from_numpy(np.stack(rows)).to(device)


def _turns(specs: Sequence[CropSpec]) -> list[int]:
    """How often each crop that is drawn is seen."""
    return [TURNS if spec.layout == "quarter_turns" else 1 for spec in specs for _ in spec.sizes]
