"""SimSiam (Chen and He 2021, arXiv 2011.10566): each of two crops predicts the other's projection."""

from collections.abc import Callable
from typing import Any, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from seer_pipe.config import Views
from seer_pipe.distributed.collectives import all_mean
from seer_pipe.models import Trunk
from seer_pipe.objectives.base import Group, Moment, Network, Objective
from seer_pipe.objectives.heads import projection
from seer_pipe.objectives.settings import Settings, Setup


class SimSiamSettings(Settings):
    name: Literal["simsiam"]
    dim: int = 2048

    def check(self, views: Views, batch: int) -> None:
        if views.count != 2:
            raise ValueError(f"objective simsiam needs 2 crops per image, views has {views.count}")

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        made = trunk()
        network = Network(made, SimSiamHead(made.width, self.dim))
        network.groups = {"head.predict": Group(constant=True)}
        return network

    def objective(self, network: Network, setup: Setup) -> Objective:
        return SimSiam()


class SimSiamHead(nn.Module):
    """Features [2n, width] -> projections and predictions [2n, dim]: rows by crop, then by image."""

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.project = projection([width, dim, dim], batch_norm=True)
        self.predict = projection([dim, max(1, dim // 4), dim], batch_norm=True)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        projected = self.project(features)
        return projected, self.predict(projected)


class SimSiam(Objective):
    def loss(self, outputs: Any, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        (first, second), (of_first, of_second) = (rows.chunk(2) for rows in outputs)
        alike = F.cosine_similarity(of_first, second.detach()) + F.cosine_similarity(of_second, first.detach())
        loss = -alike.mean() / 2
        return loss, {"loss": all_mean([loss.detach()])[0]} if log else {}
