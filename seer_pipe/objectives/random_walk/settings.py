"""The settings of contrastive random walks, and what follows from them. No torch at import."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT
from seer_pipe.objectives.patches_settings import check_grids
from seer_pipe.objectives.settings import (
    EMBEDDING_PANELS,
    EMBEDDING_SIGNS,
    Panel,
    Settings,
    Setup,
    Sign,
    guessing_sign,
)
from seer_pipe.section import Positive

if TYPE_CHECKING:
    from seer_pipe.config import Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network, Objective

EASY = 0.99  # of the walks that return: nothing is left to learn


class RandomWalkSettings(Settings):
    """On a grid of patches of several frames (``views.frames``)."""

    name: Literal["random_walk"] = Field(description="contrastive random walk over patches of videos, arXiv 2006.14613")
    dim: Positive = Field(128, description="of the embeddings, by one linear layer")
    temperature: Annotated[float, Field(gt=0)] = Field(
        0.05, description="of the steps: lower follows the nearest patch alone"
    )
    edge_drop: Annotated[float, Field(ge=0, lt=1)] = Field(
        0.1, description="share of the steps from patch to patch that are not open, drawn for each clip; more makes "
        "paths through several patches"
    )  # fmt: skip

    layouts = ("grid",)
    follows = True
    panels: ClassVar[Sequence[Panel]] = (
        Panel("Walks that return", "How often the likeliest end of a walk there and back is where it began.",
              {"cycle_accuracy": "to the last frame", "shortest_cycle": "to the third"}, percent=True),
        *EMBEDDING_PANELS,
    )  # fmt: skip

    def check(self, views: Views, batch: int) -> None:
        if views.frames is None or views.frames.count < 3:
            raise ValueError(f"objective random_walk needs 3 frames of a clip or more (views.frames), views has "
                             f"{views.moments}")  # fmt: skip
        check_grids(self.name, views, side=None)

    def chance_loss(self, views: Views, batch: int) -> float:
        """A walk that ends anywhere, of the patches of a frame."""
        return math.log(_patches(views))

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Steps of both ways between the patches of frames that follow each other, as cosines, without those dropped,
        and as probabilities; the products of each length; and as much for the gradient."""
        between = views.moments - 1
        return 2 * FLOAT * batch // ranks * _patches(views) ** 2 * (5 * between + 3 * (between - 1))

    def signs(self) -> Sequence[Sign]:
        return (
            guessing_sign(
                "the patches of a frame",
                "walks end anywhere: try another optimizer.lr, a longer optimizer.warmup_images, more "
                "views.frames.fps, larger patches",
            ),
            Sign(
                ("cycle_accuracy",),
                lambda values: values["cycle_accuracy"] > EASY,
                "{cycle_accuracy:.1%} of the walks return to where they began",
                "the walk is too easy: fewer views.frames.fps, more views.frames.count, a smaller "
                "views.crops[].grid.scale; and look whether the clips move (seer-pipe show crops)",
            ),
            *EMBEDDING_SIGNS,
        )

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from torch import nn

        from seer_pipe.objectives.base import Network

        made = trunk()
        return Network(made, nn.Linear(made.width, self.dim))

    def objective(self, network: Network, setup: Setup) -> Objective:
        from seer_pipe.objectives.random_walk.objective import RandomWalk

        return RandomWalk(self, setup.views.moments, _patches(setup.views), setup.seed)


def _patches(views: Views) -> int:
    """Of a frame."""
    return views.crops[0].grid.side ** 2
