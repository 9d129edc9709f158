"""Of objectives that predict classes which images came with. No torch at import."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT, Collectives
from seer_pipe.objectives.settings import Panel, Settings, Setup, Sign, uniform_sign
from seer_pipe.section import FREE, Place

if TYPE_CHECKING:
    from seer_pipe.config import Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network
    from seer_pipe.objectives.labels import Labels

LossName = Literal["softmax", "sigmoid"]


class LabelSettings(Settings):
    vocabulary: Annotated[Place, FREE] = Field(
        description="folder of seer-pipe vocabulary, which says the classes of each image; it may move, but not change"
    )
    classes: Annotated[int, Field(ge=2)] = Field(description="that the vocabulary has")

    panels: ClassVar[Sequence[Panel]] = (
        Panel("Labels", "How often the likeliest class is one of the image's, and how many images have one.",
              {"accuracy": "right", "labelled": "labelled"}, percent=True),
    )  # fmt: skip
    most: ClassVar[int | None] = None
    """Classes of an image, at most."""

    @property
    def kind(self) -> LossName:
        return "softmax"

    def chance_loss(self, views: Views, batch: int) -> float | None:
        """ln C, that of uniform predictions; what independent ones lose depends on how frequent each class is."""
        return math.log(self.classes) if self.kind == "softmax" else None

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Logits with their softmax and gradient."""
        return FLOAT * self.classes * 3 * views.count * batch // ranks

    def collectives(self, views: Views, batch: int, ranks: int) -> list[Collectives]:
        return [Collectives("count", "all_reduce", ranks, 1, FLOAT)]

    def signs(self) -> Sequence[Sign]:
        few = Sign(
            ("labelled",),
            lambda values: values["labelled"] < 0.5,
            "{labelled:.0%} of the images have a label",
            "the others are of no use: leave them out by data.repeats, the vocabulary's repeats.parquet",
        )
        uniform = uniform_sign(math.log(self.classes), "another optimizer.lr, a longer optimizer.warmup_images")
        return (uniform, few) if self.kind == "softmax" else (few,)

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from torch import nn

        from seer_pipe.objectives.base import Network

        made = trunk()
        return Network(made, nn.Linear(made.width, self.classes))

    def objective(self, network: Network, setup: Setup) -> Labels:
        from seer_pipe.objectives.labels import Labels
        from seer_pipe.objectives.targets import Targets

        targets = Targets(self.vocabulary, setup.samples, setup.shards, self.classes, self.most)
        return Labels(targets, self.kind, setup.views.count, setup.device)
