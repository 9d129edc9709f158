"""SimSiam's settings. No torch at import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from seer_pipe.objectives.settings import (
    EMBEDDING_PANELS,
    EMBEDDING_SIGNS,
    Head,
    Panel,
    Setup,
    Sign,
    TargetSettings,
    collapse_sign,
)
from seer_pipe.section import Positive

if TYPE_CHECKING:
    from seer_pipe.config import Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network
    from seer_pipe.objectives.simsiam.objective import SimSiam


class SimSiamSettings(TargetSettings):
    name: Literal["simsiam"] = Field(description="SimSiam, arXiv 2011.10566")
    head: Head = Head(hidden=[2048, 2048], dim=2048)
    predictor: Positive = Field(
        512, description="width of the predictor's hidden layer, a fourth of head.dim as published"
    )

    panels: ClassVar[Sequence[Panel]] = EMBEDDING_PANELS

    def chance_loss(self, views: Views, batch: int) -> float:
        """Of predictions that say nothing of the target: a cosine of 0."""
        return 0.0

    def signs(self) -> Sequence[Sign]:
        """Nothing but the predictor and BatchNorm stands against collapse (facebookresearch/simsiam, issue 29)."""
        return (collapse_sign("a larger train.batch"), *EMBEDDING_SIGNS)

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        """Layers as in arXiv 2011.10566, section 3: BatchNorm after the last one without scale and shift."""
        from seer_pipe.objectives.base import Group, Network
        from seer_pipe.objectives.heads import PredictorHead, projection

        made, head = trunk(), self.head
        dims = [made.width, *head.hidden, head.dim]
        project = projection(dims, head.batch_norm, bias=False, last_bias=False, last_norm="plain")
        predict = projection([head.dim, self.predictor, head.dim], head.batch_norm, bias=False)
        network = Network(made, PredictorHead(project, predict))
        network.groups = {"head.predict": Group(constant=True)}
        return network

    def objective(self, network: Network, setup: Setup) -> SimSiam:
        from seer_pipe.objectives.simsiam.objective import SimSiam

        return SimSiam(setup.views.count, self.targets, device=setup.device)
