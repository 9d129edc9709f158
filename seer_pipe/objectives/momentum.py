"""A network beside its momentum copies, which give the targets (He et al. 2020, arXiv 1911.05722; Grill et al. 2020,
arXiv 2006.07733)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from seer_pipe.models import Trunk
from seer_pipe.objectives.base import Moment, Network, Objective, pooled
from seer_pipe.objectives.metrics import logged
from seer_pipe.objectives.settings import Momentum
from seer_pipe.optim.schedule import half_cosine


class MomentumOutput(NamedTuple):
    online: Any
    """What the head returned for its crops, rows in crop-major order."""
    targets: Any
    """What the copied head returned for the target crops, in their order, without gradient."""


class MomentumNetwork(Network):
    """A trunk and a head over crops, and momentum copies of the trunk and of ``original`` over the target crops.

    The copies run in training mode with BatchNorm statistics of their own.

    Args:
        trunk, head: what is trained.
        copied_trunk, copied_head: the copies, of the same shape; their first weights are set at the start.
        original: what ``copied_head`` is a copy of: ``head``, or a part of it where a predictor has no copy.
        targets: crops that the copies see.
        unseen: a crop that trunk and head do not see.
    """

    def __init__(
        self,
        trunk: Trunk,
        head: nn.Module,
        copied_trunk: Trunk,
        copied_head: nn.Module,
        *,
        original: nn.Module,
        targets: Sequence[int],
        unseen: int | None = None,
    ) -> None:
        super().__init__(trunk, head)
        self.copied_trunk, self.copied_head = copied_trunk, copied_head
        self._copies = [(copied_trunk, trunk), (copied_head, original)]  # in a list, or it would be named twice
        self._targets, self._unseen = list(targets), unseen

    def copies(self) -> list[tuple[nn.Module, nn.Module]]:
        return self._copies

    def forward(self, crops: list[Tensor]) -> MomentumOutput:
        with torch.no_grad():
            targets = self.copied_head(pooled(self.copied_trunk, [crops[crop] for crop in self._targets]))
        online = super().forward([crop for place, crop in enumerate(crops) if place != self._unseen])
        return MomentumOutput(online, targets)


def momentum_at(start: float, end: float, moment: Moment, batch: int, per_images: int) -> float:
    """Weight of the old value: half a cosine from ``start`` to ``end`` over the run, in images, as in BYOL.

    Both are meant for a step of ``per_images`` images. For other batches it is raised to the power of their ratio, so
    that copies trail by as many images whatever the batch is.
    """
    return float(half_cosine(start, end, moment.progress) ** (batch / per_images))


class MomentumObjective(Objective):
    """An objective over such a network, of ``batch`` images a step."""

    def __init__(self, schedule: Momentum, batch: int) -> None:
        self._schedule, self._batch = schedule, batch

    def momentum(self, moment: Moment) -> float:
        schedule = self._schedule
        return momentum_at(schedule.start, schedule.end, moment, self._batch, schedule.batch)

    def logged(self, loss: Tensor, embeddings: Tensor, moment: Moment, **means: Tensor) -> dict[str, Tensor]:
        """`metrics.logged`, and the momentum in force."""
        return logged(loss, embeddings, **means, momentum=torch.full_like(loss, self.momentum(moment)))
