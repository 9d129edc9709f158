"""Two trunks, of pictures and of sounds, whose heads end in one space."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from seer_pipe.models import Trunk
from seer_pipe.objectives.base import Network, pooled
from seer_pipe.objectives.momentum import MomentumNetwork, MomentumOutput

SEEN, HEARD = 0, 1  # of what is remembered of a pair


class Pair(NamedTuple):
    """Embeddings, not of unit length."""

    seen: Tensor  # [V · n, D] of the crops, in crop-major order
    heard: Tensor  # [n, D] of the sounds


class PairHead(nn.Module):
    """What goes with the trunk of pictures: its projection, and the trunk of sounds with its own."""

    def __init__(self, project: nn.Module, sound_trunk: Trunk, sound_project: nn.Module) -> None:
        super().__init__()
        self.project, self.sound_trunk, self.sound_project = project, sound_trunk, sound_project

    def heard(self, sounds: Tensor) -> Tensor:
        """Embeddings [n, D] of spectrograms [n, 1, columns, bands]."""
        embeddings: Tensor = self.sound_project(self.sound_trunk(sounds))
        return embeddings


class PairNetwork(Network):
    """Over crops of which the last is the spectrogram of the sound."""

    head: PairHead

    def forward(self, crops: list[Tensor]) -> Pair:
        return _paired(self.trunk, self.head, crops)


class MomentumPairNetwork(MomentumNetwork):
    """Beside it momentum copies of all, which see the first crop and the sound."""

    head: PairHead
    copied_head: PairHead

    def forward(self, crops: list[Tensor]) -> MomentumOutput:
        with torch.no_grad():
            targets = _paired(self.copied_trunk, self.copied_head, [crops[0], crops[-1]])
        return MomentumOutput(_paired(self.trunk, self.head, crops), targets)


def _paired(trunk: nn.Module, head: PairHead, crops: list[Tensor]) -> Pair:
    *pictures, sounds = crops
    return Pair(head.project(pooled(trunk, pictures)), head.heard(sounds))
