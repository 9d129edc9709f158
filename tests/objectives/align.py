"""Alignment and uniformity on the sphere (Wang and Isola 2020, arXiv 2005.10242, section 5)."""

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from seer_pipe.config import Views
from seer_pipe.distributed.gradients import gather_crops
from seer_pipe.distributed.traffic import FLOAT, Collectives
from seer_pipe.models import Trunk
from seer_pipe.objectives.base import Moment, Network, Objective
from seer_pipe.objectives.heads import projection
from seer_pipe.objectives.settings import Settings, Setup


class AlignSettings(Settings):
    name: Literal["align"]
    dim: int = 128

    def check(self, views: Views, batch: int) -> None:
        if views.count != 2:
            raise ValueError(f"objective align needs 2 crops per image, views has {views.count}")

    def collectives(self, views: Views, batch: int, ranks: int) -> list[Collectives]:
        size = FLOAT * 2 * batch * self.dim
        return [
            Collectives("embeddings", "all_gather", ranks, 1, size),
            Collectives("embeddings", "reduce_scatter", ranks, 1, size),
        ]

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        made = trunk()
        return Network(made, projection([made.width, self.dim], batch_norm=True))

    def objective(self, network: Network, setup: Setup) -> Objective:
        return Align()


class Align(Objective):
    """Crops of an image lie close, and images far from each other: every rank has the loss of the whole batch."""

    def loss(self, outputs: Any, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        crops = gather_crops(F.normalize(outputs, dim=1), len(moment.samples)).chunk(2)
        alike = (crops[0] - crops[1]).square().sum(1).mean()
        apart = [torch.pdist(crop).square().mul(-2).exp().mean().log() for crop in crops]
        loss = alike + (apart[0] + apart[1]) / 2
        return loss, {"loss": loss.detach()} if log else {}
