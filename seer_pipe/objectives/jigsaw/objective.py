"""Jigsaw puzzles: in which order do nine patches of an image come (Noroozi and Favaro 2016, arXiv 1603.09246).

The order is one of P that differ in many places. Each patch goes through trunk and a layer on its own, g; what is found
of all nine, in the order that they came in, is classified. Of an image whose order is number o::

    z    = W [g(patch_0), …, g(patch_8)] + b
    loss = mean over images of  -log softmax(z)_o
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from seer_pipe.errors import UserError
from seer_pipe.objectives.base import Moment, Objective
from seer_pipe.objectives.patches import by_image
from seer_pipe.objectives.patches_settings import PATCHES
from seer_pipe.objectives.pretext import guess
from seer_pipe.objectives.settings import Setup


class JigsawHead(nn.Module):
    """Features [9 · n, width] of patches, in crop-major order, to logits [n, P] of their orders."""

    def __init__(self, width: int, dim: int, permutations: int) -> None:
        super().__init__()
        self.each = nn.Sequential(nn.Linear(width, dim), nn.BatchNorm1d(dim), nn.ReLU(inplace=True))
        self.classify = nn.Linear(PATCHES * dim, permutations)

    def forward(self, features: Tensor) -> Tensor:
        logits: Tensor = self.classify(by_image(self.each(features)).flatten(1))
        return logits


class Jigsaw(Objective):
    """``orders`` [P, 9]: which cell's patch comes at which place; a patch's label is its cell."""

    def __init__(self, orders: npt.NDArray[np.uint8], setup: Setup) -> None:
        self.orders = torch.from_numpy(orders).to(setup.device)

    def loss(self, outputs: Tensor, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        assert moment.labels is not None  # the settings ask for a shuffled grid
        theirs = (moment.labels.T[:, None] == self.orders).all(2)  # [n, P], once in each row
        return guess(outputs, theirs.int().argmax(1), log)

    def state_dict(self) -> dict[str, Tensor]:
        return {"orders": self.orders}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """UserError where the orders of the checkpoint are others: its classifier would name these by wrong numbers."""
        if not torch.equal(state["orders"].to(self.orders), self.orders):
            raise UserError("checkpoint: its orders of the patches are not this run's: finish it with its own seed and "
                            "objective.permutations, and the release that began it")  # fmt: skip
