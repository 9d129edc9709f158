"""What objectives over clusters of a memory have in common. No torch at import."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT, Collectives
from seer_pipe.objectives.bank_settings import BankSettings
from seer_pipe.objectives.settings import (
    EMBEDDING_PANELS,
    EMBEDDING_SIGNS,
    Head,
    Momentum,
    Panel,
    Settings,
    Sign,
    uniform_sign,
)
from seer_pipe.section import Count, Positive

if TYPE_CHECKING:
    from seer_pipe.config import Config, Views


class ClusterSettings(Settings):
    """Of an objective that predicts which cluster of a memory an image belongs to.

    The memory is a bank with a row for each image of the set; or with ``ring`` the last images of a stream, as a
    momentum copy of the network sees them.
    """

    head: Head = Head()
    prototypes: Annotated[int, Field(ge=2)] = Field(3000, description="clusters of a head")
    heads: Positive = Field(3, description="clusterings that are predicted side by side")
    temperature: Annotated[float, Field(gt=0)] = Field(0.1, description="of the predictions")
    assign: list[Count] = Field([0, 1], min_length=1, description="crops that are remembered; heads take them in turn")
    ring: Count = Field(0, description="last images of a stream that are clustered; 0: all of the set, in a bank")
    momentum: Momentum = Momentum(start=0.99, end=0.99, batch=256)
    bank: BankSettings = BankSettings(keep=0.0)
    refresh_images: Positive = Field(1_281_167, description="images between two refreshes of the clusters")

    panels: ClassVar[Sequence[Panel]] = (
        Panel("Clusters", "Of the last refresh: sizes as alike as so many even clusters; empty ones; the largest.",
              {"cluster_perplexity": "even", "clusters_empty": "empty", "cluster_largest": "in the largest"},
              percent=True),
        Panel("Refreshes", "How much clusters before and after the last refresh agree: 1 where they are the same.",
              {"refresh_nmi": "NMI"}),
        Panel("Labels", "Images that have a label; crops that predict theirs; how even the labels of a batch are.",
              {"labelled": "labelled", "label_accuracy": "predicted", "label_perplexity": "even"}, percent=True),
        *EMBEDDING_PANELS,
    )  # fmt: skip

    def check(self, views: Views, batch: int) -> None:
        self.check_crops(views, "assign")
        if self.ring and self.ring < max(batch, self.prototypes):
            raise ValueError(f"objective.ring {self.ring} is less than train.batch or objective.prototypes: a refresh "
                             "needs several images for each cluster")  # fmt: skip

    def chance_loss(self, views: Views, batch: int) -> float:
        """ln K, that of uniform predictions."""
        return math.log(self.prototypes)

    @property
    def settled_images(self) -> int:
        """Nothing is predicted before the first refresh, and no two are compared before the second."""
        return 2 * self.refresh_images

    @property
    def knows_its_end(self) -> bool:
        return bool(self.ring) and self.momentum.start != self.momentum.end

    def derived(self, batch: int) -> dict[str, float]:
        return {"refresh_steps": math.ceil(self.refresh_images / batch)}

    def problems(self, config: Config, images: int) -> list[str]:
        if self.refresh_images >= images:
            return ["objective.refresh_images: there are no clusters before the first refresh, so nothing is learnt"]
        return []

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Scores of a head with their softmax and gradient, all heads' kept for the backward pass; the centroids, and
        what a bad step goes back to; the ring, and the ring after its next write."""
        scores = 3 * views.count * (batch // ranks) * self.heads * self.prototypes
        width = len(self.assign) * self.head.dim
        return FLOAT * (scores + 2 * self.heads * self.prototypes * (self.head.dim + 1) + 2 * self.ring * width)

    def kept(self, samples: int, ranks: int) -> float:
        return 0.0 if self.ring else self.bank.bytes(samples, len(self.assign) * self.head.dim, ranks)

    def collectives(self, views: Views, batch: int, ranks: int) -> list[Collectives]:
        """What enters the memory, and of a bank what is read of it; how many images have a label."""
        width = len(self.assign) * self.head.dim
        count = Collectives("count", "all_reduce", ranks, 1, FLOAT)
        if self.ring:
            return [Collectives("ring", "all_gather", ranks, 1, FLOAT * batch * width), count]
        return [*self.bank.collectives(width, batch, ranks), count]

    def signs(self) -> Sequence[Sign]:
        return (
            uniform_sign(math.log(self.prototypes), "fewer objective.prototypes, or a lower optimizer.lr"),
            Sign(
                ("cluster_perplexity",),
                lambda values: values["cluster_perplexity"] < 0.3,
                "the clusters' sizes are as uneven as if {cluster_perplexity:.0%} of them were even, and the largest "
                "has {cluster_largest:.0%} of the images",
                "few clusters take most images: try fewer objective.prototypes, or a shorter objective.refresh_images",
            ),
            Sign(
                ("label_perplexity", "label_accuracy"),
                lambda values: values["label_perplexity"] < 0.15,
                "the labels of a batch are as uneven as if {label_perplexity:.0%} of those that it could have were "
                "even, and {label_accuracy:.0%} are predicted",
                "images move to few clusters between two refreshes: try objective.momentum nearer to 1 where there is "
                "a ring, a shorter objective.refresh_images, or a lower optimizer.lr",
            ),
            Sign(
                ("refresh_nmi",),
                lambda values: values["refresh_nmi"] < 0.2,
                "the clusters before and after a refresh agree by {refresh_nmi:.2f} (NMI)",
                "every refresh names others: try a lower optimizer.lr, a shorter objective.refresh_images, or fewer "
                "objective.prototypes",
            ),
            *EMBEDDING_SIGNS,
        )
