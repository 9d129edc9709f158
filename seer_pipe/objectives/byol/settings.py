"""BYOL's settings. No torch at import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from seer_pipe.objectives.settings import (
    EMBEDDING_PANELS,
    EMBEDDING_SIGNS,
    MOMENTUM_PANELS,
    Head,
    MomentumSettings,
    Panel,
    Setup,
    Sign,
    collapse_sign,
)
from seer_pipe.section import Positive

if TYPE_CHECKING:
    from seer_pipe.config import Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network
    from seer_pipe.objectives.byol.objective import Byol


class ByolSettings(MomentumSettings):
    name: Literal["byol"] = Field(description="BYOL, arXiv 2006.07733")
    head: Head = Head(hidden=[4096], dim=256)
    predictor: Positive = Field(4096, description="width of the predictor's hidden layer")

    panels: ClassVar[Sequence[Panel]] = (*EMBEDDING_PANELS, *MOMENTUM_PANELS)

    def chance_loss(self, views: Views, batch: int) -> float:
        """Of predictions that say nothing of the target: a squared distance of 2 to each."""
        return 2.0 * len(self.targets)

    def signs(self) -> Sequence[Sign]:
        return (collapse_sign("objective.momentum.start nearer to 1"), *EMBEDDING_SIGNS)

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        """Layers as in DeepMind's code: the last of projection and prediction has no bias and no BatchNorm."""
        from seer_pipe.objectives.heads import PredictorHead, projection
        from seer_pipe.objectives.momentum import MomentumNetwork

        made, copied, head = trunk(), trunk(), self.head
        dims = [made.width, *head.hidden, head.dim]
        project, copied_head = (projection(dims, head.batch_norm, last_bias=False) for _ in range(2))
        predict = projection([head.dim, self.predictor, head.dim], head.batch_norm, last_bias=False)
        return MomentumNetwork(
            made, PredictorHead(project, predict), copied, copied_head, original=project, targets=self.targets
        )

    def objective(self, network: Network, setup: Setup) -> Byol:
        from seer_pipe.objectives.byol.objective import Byol

        return Byol(setup.views.count, self.targets, self.momentum, setup.batch, device=setup.device)
