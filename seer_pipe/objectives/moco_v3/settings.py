"""MoCo v3's settings, and what follows from them. No torch at import."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT, Collectives
from seer_pipe.objectives.settings import (
    EMBEDDING_PANELS,
    EMBEDDING_SIGNS,
    MOMENTUM_PANELS,
    RETRIEVAL_PANELS,
    RETRIEVAL_SIGNS,
    Head,
    Momentum,
    MomentumSettings,
    Panel,
    Setup,
    Sign,
)
from seer_pipe.section import Positive

if TYPE_CHECKING:
    from seer_pipe.config import Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network
    from seer_pipe.objectives.moco_v3.objective import MocoV3


class MocoV3Settings(MomentumSettings):
    name: Literal["moco_v3"] = Field(description="MoCo v3, arXiv 2104.02057")
    head: Head = Head(hidden=[4096], dim=256)
    predictor: Positive = Field(4096, description="width of the predictor's hidden layer")
    temperature: Annotated[float, Field(gt=0)] = Field(
        1.0, description="of the cosines; lower tells near images apart more sharply, and is less stable"
    )
    momentum: Momentum = Momentum(start=0.99)

    panels: ClassVar[Sequence[Panel]] = (*RETRIEVAL_PANELS, *EMBEDDING_PANELS, *MOMENTUM_PANELS)

    def chance_loss(self, views: Views, batch: int) -> float:
        """2 T ln B for each target: all keys of the batch are equally near."""
        return 2 * self.temperature * len(self.targets) * math.log(batch)

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Cosines of each query with the keys of the batch, with their softmax and gradient; the keys."""
        queries = (views.count - 1) * batch // ranks
        return FLOAT * len(self.targets) * batch * (3 * queries + self.head.dim)

    def collectives(self, views: Views, batch: int, ranks: int) -> list[Collectives]:
        return [Collectives("keys", "all_gather", ranks, 1, FLOAT * len(self.targets) * batch * self.head.dim)]

    def signs(self) -> Sequence[Sign]:
        return (*RETRIEVAL_SIGNS, *EMBEDDING_SIGNS)

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        """Layers as in the authors' code for ResNets: no biases, BatchNorm without scale and shift after the last
        layer of the projection, none after the predictor's."""
        from seer_pipe.objectives.heads import PredictorHead, projection
        from seer_pipe.objectives.momentum import MomentumNetwork

        made, copied, head = trunk(), trunk(), self.head
        dims = [made.width, *head.hidden, head.dim]
        project, copied_head = (
            projection(dims, head.batch_norm, bias=False, last_bias=False, last_norm="plain") for _ in range(2)
        )
        predict = projection([head.dim, self.predictor, head.dim], head.batch_norm, bias=False, last_bias=False)
        return MomentumNetwork(
            made, PredictorHead(project, predict), copied, copied_head, original=project, targets=self.targets
        )

    def objective(self, network: Network, setup: Setup) -> MocoV3:
        from seer_pipe.objectives.moco_v3.objective import MocoV3

        return MocoV3(setup.views.count, self.targets, self.momentum, setup.batch, self.temperature)
