"""Relative patch location: in which direction from the middle patch of a grid is another (Doersch et al. 2015, arXiv
1505.05192, section 3).

Each of the eight neighbours is a pair with the middle patch, as in mmselfsup; Doersch et al. take all neighbours of all
patches. With trunk f and a perceptron p of one hidden layer, and directions d of 0 to 7, row by row::

    z    = p([f(middle), f(neighbour)])
    loss = mean over images and pairs of  -log softmax(z)_d
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from seer_pipe.objectives.base import Moment, Objective
from seer_pipe.objectives.heads import projection
from seer_pipe.objectives.patches_settings import PATCHES
from seer_pipe.objectives.pretext import guess
from seer_pipe.objectives.relative_patch.settings import DIRECTIONS

MIDDLE = PATCHES // 2


class PairHead(nn.Module):
    """Features [9 · n, width] of patches to logits [8 · n, 8] of the neighbours' directions, both crop-major."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.pair = projection([2 * width, hidden, DIRECTIONS], batch_norm=True)

    def forward(self, features: Tensor) -> Tensor:
        patches = features.unflatten(0, (PATCHES, -1))
        middle = patches[MIDDLE].expand(DIRECTIONS, -1, -1)
        logits: Tensor = self.pair(torch.cat([middle, _neighbours(patches)], dim=2).flatten(0, 1))
        return logits


class RelativePatch(Objective):
    def loss(self, outputs: Tensor, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        assert moment.labels is not None  # the settings ask for a grid
        cells = _neighbours(moment.labels)
        return guess(outputs, (cells - (cells > MIDDLE).long()).flatten(), log)


def _neighbours(patches: Tensor) -> Tensor:
    """Of nine patches [9, ..] all but the middle one, [8, ..]."""
    return torch.cat([patches[:MIDDLE], patches[MIDDLE + 1 :]])
