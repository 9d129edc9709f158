"""SimCLR's settings, and what follows from them. No torch at import."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT, Collectives, gathered
from seer_pipe.objectives.settings import (
    EMBEDDING_PANELS,
    EMBEDDING_SIGNS,
    Head,
    Panel,
    Settings,
    Setup,
    Sign,
    guessing_sign,
)

if TYPE_CHECKING:
    from seer_pipe.config import Config, Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network, Objective

FEW_IMAGES = 128  # of a batch: the paper's smallest is 256 (figure 9), and its accuracy falls towards it


class SimclrSettings(Settings):
    """Version 1 projects by one hidden layer, version 2 by two (``head.hidden: [2048, 2048]``)."""

    name: Literal["simclr"] = Field(description="SimCLR, arXiv 2002.05709")
    head: Head = Head()
    temperature: Annotated[float, Field(gt=0)] = Field(
        0.1, description="of the cosines; lower tells near images apart more sharply, and is less stable"
    )

    panels: ClassVar[Sequence[Panel]] = (
        Panel("Similarity", "Cosines: crops of one image must become more alike than those of others.",
              {"positive_similarity": "of one image", "negative_similarity": "of others"}),
        Panel("Nearest crop", "Crops whose nearest in the batch is of the same image.", {"top1": "found"},
              percent=True),
        *EMBEDDING_PANELS,
    )  # fmt: skip

    def check(self, views: Views, batch: int) -> None:
        self.check_crops(views)

    def chance_loss(self, views: Views, batch: int) -> float:
        """ln(V · B − 1): all other crops of the batch are equally near."""
        return math.log(views.count * batch - 1)

    def problems(self, config: Config, images: int) -> list[str]:
        batch = config.train.batch
        if batch >= FEW_IMAGES:
            return []
        return [f"train.batch {batch}: each crop is told from those of {batch - 1} other images; take {FEW_IMAGES} or "
                "more"]  # fmt: skip

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Similarities of this rank's crops to all, with their softmax and gradient, and the gathered embeddings."""
        crops = views.count * batch
        return FLOAT * (3 * crops // ranks * crops + 2 * crops * self.head.dim)

    def collectives(self, views: Views, batch: int, ranks: int) -> list[Collectives]:
        """The embeddings of all ranks, and their gradient."""
        size = FLOAT * views.count * batch * self.head.dim
        return gathered("embeddings", ranks, size)

    def signs(self) -> Sequence[Sign]:
        return (
            guessing_sign(
                "all crops",
                "no crop finds its image's others: try a longer optimizer.warmup_images, another optimizer.lr, a "
                "smaller objective.temperature",
            ),
            Sign(
                ("positive_similarity", "negative_similarity"),
                lambda values: values["positive_similarity"] - values["negative_similarity"] < 0.02,
                "crops of one image have a similarity of {positive_similarity:.2f}, and those of different images of "
                "{negative_similarity:.2f}",
                "images are not told apart: try a lower optimizer.lr, a longer optimizer.warmup_images",
            ),
            *EMBEDDING_SIGNS,
        )

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from seer_pipe.objectives.base import Group, Network
        from seer_pipe.objectives.heads import projection

        made = trunk()
        dims = [made.width, *self.head.hidden, self.head.dim]
        normed = self.head.batch_norm
        head = projection(dims, normed, last_bias=False, last_norm="affine" if normed else "none")
        network = Network(made, head)
        if normed:  # the published last BatchNorm scales and does not shift: its shift stays at 0
            network.groups = {f"head.{len(head) - 1}.bias": Group(rate=0.0, decay=False)}
        return network

    def objective(self, network: Network, setup: Setup) -> Objective:
        from seer_pipe.objectives.simclr.objective import Simclr

        return Simclr(setup.views.count, self.temperature)
