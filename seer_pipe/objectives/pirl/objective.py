"""PIRL: a crop of an image, and nine patches of it in any order, both find its row (Misra and van der Maaten 2020,
arXiv 1912.01991, section 3).

With trunk f, linear layers g, h and W, and the patches in the order that they came in::

    v_crop    = g(f(crop)),    v_patches = W [h(f(patch_0)), …, h(f(patch_8))]
    loss      = (1 - w) · L(v_crop) + w · L(v_patches)

where L is the loss of `instances` over unit embeddings: as published with a bank, into which v_crop is written. An
image's first visit only writes its row. In a stream images come once: a momentum copy of f and g embeds another crop,
which stands for the row, and those of others are a ring of what the copy made of the last images.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from seer_pipe.objectives.base import Moment
from seer_pipe.objectives.heads import unit
from seer_pipe.objectives.instances import Instances
from seer_pipe.objectives.memory import memory_of
from seer_pipe.objectives.momentum import momentum_at
from seer_pipe.objectives.patches import by_image
from seer_pipe.objectives.patches_settings import PATCHES
from seer_pipe.objectives.pirl.settings import PirlSettings
from seer_pipe.objectives.settings import Setup


class Embeddings(NamedTuple):
    crop: Tensor  # [n, D]
    patches: Tensor  # [n, D]


class PirlHead(nn.Module):
    """Features [10 · n, width] of a crop and nine patches, in crop-major order, to embeddings."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.crop, self.patch = nn.Linear(width, dim), nn.Linear(width, dim)
        self.patches = nn.Linear(PATCHES * dim, dim)

    def forward(self, features: Tensor) -> Embeddings:
        images = len(features) // (1 + PATCHES)
        each = self.patch(features[images:])
        return Embeddings(self.crop(features[:images]), self.patches(by_image(each).flatten(1)))


class Pirl(Instances):
    settings: PirlSettings

    def __init__(self, settings: PirlSettings, setup: Setup) -> None:
        memory, weight = memory_of(settings.ring, settings.bank, (settings.dim,), setup), settings.patches_weight
        super().__init__(settings, setup, memory, [1 - weight, weight])
        self._batch = setup.batch

    def embedded(self, outputs: Any) -> tuple[Tensor, Tensor]:
        online, copied = outputs if self.settings.ring else (outputs, None)
        z = torch.stack([unit(online.crop), unit(online.patches)])
        return z, z[0] if copied is None else unit(copied)

    def momentum(self, moment: Moment) -> float:
        schedule = self.settings.momentum
        return momentum_at(schedule.start, schedule.end, moment, self._batch, schedule.batch)
