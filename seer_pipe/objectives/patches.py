"""A trunk over the patches of a grid, which solves for their places."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from seer_pipe.objectives.base import Network
from seer_pipe.objectives.patches_settings import PATCHES


class PatchNetwork(Network):
    """Each patch is normalised by its own mean and deviation, channel by channel: neighbours are not to be found by
    their brightness (Noroozi and Favaro 2016, section 3.3)."""

    def forward(self, crops: list[Tensor]) -> Tensor:
        found: Tensor = super().forward([F.instance_norm(crop) for crop in crops])
        return found


def by_image(rows: Tensor) -> Tensor:
    """Of the nine patches of n images, in crop-major order [9 · n, D], to [n, 9, D]."""
    return rows.unflatten(0, (PATCHES, -1)).transpose(0, 1)
