"""VICReg's settings, and what follows from them. No torch at import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from seer_pipe.objectives.column_settings import ColumnSettings, Pairs
from seer_pipe.objectives.settings import EMBEDDING_PANELS, EMBEDDING_SIGNS, Panel, Setup, Sign
from seer_pipe.section import Rate

if TYPE_CHECKING:
    from seer_pipe.config import Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network, Objective

EPS = 1e-4  # added to variances, as published


class VicregSettings(ColumnSettings):
    name: Literal["vicreg"] = Field(description="VICReg, arXiv 2105.04906")
    invariance: Rate = Field(25.0, description="weight of the distance between crops of one image")
    variance: Rate = Field(
        25.0, description="weight of what the deviations lack to 1; larger where embeddings collapse"
    )
    covariance: Rate = Field(1.0, description="weight of the covariance of different dimensions")

    panels: ClassVar[Sequence[Panel]] = (
        Panel("Variance", "What the deviations lack to 1: near 1 all embeddings are one.", {"hinge": "lacking"}),
        Panel("Invariance", "Mean squared distance between crops of one image.", {"distance": "distance"}),
        Panel("Covariance", "Of different dimensions, squared and summed per dimension.", {"redundancy": "redundancy"}),
        *EMBEDDING_PANELS,
    )

    def moments(self, crops: int) -> Pairs:
        """Of each crop with itself."""
        return [(crop, crop) for crop in range(crops)]

    def chance_loss(self, views: Views, batch: int) -> float:
        """All embeddings are one: the variance alone is missed."""
        return float(self.variance * (1 - EPS**0.5))

    def signs(self) -> Sequence[Sign]:
        return (
            Sign(
                ("hinge",),
                lambda values: values["hinge"] > 0.9,
                "the deviations of the embeddings lack {hinge:.2f} to 1",
                "embeddings do not spread: try a lower optimizer.lr, a longer optimizer.warmup_images, a larger "
                "objective.variance",
            ),
            *EMBEDDING_SIGNS,
        )

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from seer_pipe.objectives.base import Network
        from seer_pipe.objectives.heads import projection

        made = trunk()
        dims = [made.width, *self.head.hidden, self.head.dim]
        return Network(made, projection(dims, self.head.batch_norm, last_bias=False))

    def objective(self, network: Network, setup: Setup) -> Objective:
        from seer_pipe.objectives.vicreg.objective import Vicreg

        return Vicreg(self, setup.views.count)
