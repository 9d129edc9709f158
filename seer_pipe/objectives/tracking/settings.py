"""The settings of ranking by tracks, and what follows from them. No torch at import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT, Collectives, gathered
from seer_pipe.objectives.settings import (
    EMBEDDING_PANELS,
    EMBEDDING_SIGNS,
    RETRIEVAL_PANELS,
    Head,
    Panel,
    Settings,
    Setup,
    Sign,
)
from seer_pipe.section import Count, Positive

if TYPE_CHECKING:
    from seer_pipe.config import Config, Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network, Objective


class TrackingSettings(Settings):
    """On pairs of pictures (``views.pictures: 2``), or on two crops of an image."""

    name: Literal["tracking"] = Field(description="patches tracked in videos, arXiv 1505.00687")
    head: Head = Head(hidden=[4096], dim=1024, batch_norm=False)
    margin: Annotated[float, Field(gt=0, le=2)] = Field(
        0.5, description="by which another's cosine must be less than the pair's own"
    )
    negatives: Positive = Field(4, description="others of the batch that each pair is ranked before")
    hard_after: Count = Field(
        1_000_000, description="images until which the others are drawn; from then on they are the nearest ones"
    )

    panels: ClassVar[Sequence[Panel]] = (
        *RETRIEVAL_PANELS,
        Panel("Misranked", "Triplets whose other is not farther than the own one by the margin: they have a loss.",
              {"misranked": "misranked"}, percent=True),
        *EMBEDDING_PANELS,
    )  # fmt: skip

    def check(self, views: Views, batch: int) -> None:
        if views.count != 2:
            raise ValueError(f"objective tracking needs 2 crops per image, views has {views.count}")
        if self.negatives > 2 * (batch - 1):
            raise ValueError(f"objective.negatives {self.negatives}: a batch of {batch} has {2 * (batch - 1)} others")

    def chance_loss(self, views: Views, batch: int) -> float:
        """The margin: all others are as near as the own one."""
        return self.margin

    def problems(self, config: Config, images: int) -> list[str]:
        if config.views.pictures == 2:
            return []
        return ["views.pictures 1: a pair is two crops of one image; those of tracks in videos need views.pictures: 2"]

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Cosines of this rank's first crops with all, with their gradient and order, and the gathered embeddings."""
        return FLOAT * (3 * batch // ranks * 2 * batch + 2 * 2 * batch * self.head.dim)

    def collectives(self, views: Views, batch: int, ranks: int) -> list[Collectives]:
        """The embeddings of all ranks, and their gradient."""
        size = FLOAT * 2 * batch * self.head.dim
        return gathered("embeddings", ranks, size)

    def signs(self) -> Sequence[Sign]:
        return (
            Sign(
                ("positive_similarity", "negative_similarity"),
                lambda values: values["positive_similarity"] - values["negative_similarity"] < 0.05,
                "a picture's cosine with the other of its pair is {positive_similarity:.2f}, with others "
                "{negative_similarity:.2f}",
                "pairs are not told apart: try a lower optimizer.lr, a longer optimizer.warmup_images, a later "
                "objective.hard_after",
            ),
            *EMBEDDING_SIGNS,
        )

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from seer_pipe.objectives.base import Network
        from seer_pipe.objectives.heads import projection

        made = trunk()
        return Network(made, projection([made.width, *self.head.hidden, self.head.dim], self.head.batch_norm))

    def objective(self, network: Network, setup: Setup) -> Objective:
        from seer_pipe.objectives.tracking.objective import Tracking

        return Tracking(self, setup.seed)
