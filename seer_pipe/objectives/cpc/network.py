"""CPC's network: each patch of a grid through the trunk, what its row and those above say of rows further down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seer_pipe.distributed.parts import whole_shape
from seer_pipe.objectives.base import Network, pooled


class Predicted(NamedTuple):
    """Of the patches of n images, in crop-major rows."""

    targets: Tensor  # [S · S · n, D], row by row
    predictions: list[Tensor]  # [(S - k) · S · n, D] for each offset k: of the last S - k rows, from those k above


class CpcNetwork(Network):
    """The patches of a grid of S x S, row by row, as crops [n, 3, P, P]."""

    head: CpcHead

    def forward(self, crops: list[Tensor]) -> Predicted:
        side = math.isqrt(len(crops))
        found: Predicted = self.head(pooled(self.trunk, crops).unflatten(0, (side, side, -1)))
        return found


class CpcHead(nn.Module):
    """Features [S, S, n, width] of a grid to what is to be predicted of each patch, and the predictions.

    The context network is that of version 2, appendix A.2: residual blocks whose convolutions see a row and those
    above it, and rectified at the end.
    """

    def __init__(self, width: int, hidden: int, blocks: int, dim: int, offsets: Sequence[int]) -> None:
        super().__init__()
        self.offsets = list(offsets)
        self.context = nn.Sequential(*(RowsAbove(width, hidden) for _ in range(blocks)), nn.ReLU())
        self.target = nn.Linear(width, dim)
        self.predict = nn.ModuleList(FromZero(width, dim, 1) for _ in offsets)

    def forward(self, grid: Tensor) -> Predicted:
        context = self.context(grid.permute(2, 3, 0, 1))
        predictions = [
            predict(context[:, :, :-offset]).permute(2, 3, 0, 1).flatten(0, 2)
            for predict, offset in zip(self.predict, self.offsets, strict=True)
        ]
        return Predicted(self.target(grid).flatten(0, 2), predictions)


class FromZero(nn.Conv2d):
    """A convolution that begins at zero.

    So a context begins as its patch's own features, and the loss as that of guessing. Where predictions are large and
    random at first, the fastest way down is to make all targets alike, and they hardly part again.
    """

    def first_weights(self, generator: torch.Generator) -> Mapping[str, Tensor]:
        return {name: torch.zeros(whole_shape(parameter)) for name, parameter in self.named_parameters()}


class RowsAbove(nn.Module):
    """x + F(x) over [n, width, rows, columns], F = 1x1, 1x3 in its row, 2x1 of its row and the one above, 1x1."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.narrow = nn.Conv2d(width, hidden, 1)
        self.aside = nn.Conv2d(hidden, hidden, (1, 3), padding=(0, 1))
        self.above = nn.Conv2d(hidden, hidden, (2, 1))
        self.widen = FromZero(hidden, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        aside = self.aside(self.narrow(x).relu())
        above = self.above(F.pad(aside, (0, 0, 1, 0)))  # over the first row are zeros
        widened: Tensor = self.widen(above.relu())
        return x + widened
