"""MoCo v2's settings, and what follows from them. No torch at import."""

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
from seer_pipe.section import Count, Positive

if TYPE_CHECKING:
    from seer_pipe.config import Config, Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network
    from seer_pipe.objectives.moco_v2.objective import MocoV2


class MocoV2Settings(MomentumSettings):
    """``targets: [1]`` of two crops is MoCo's one direction, ``[0, 1]`` both (symmetric).

    A key whose BatchNorm shares a group of images with its query gives itself away. MoCo shuffles the keys' images over
    GPUs against it; here BatchNorm is over the whole batch (train.sync_bn: true), for any number of ranks.
    """

    name: Literal["moco_v2"] = Field(description="MoCo v2, arXiv 2003.04297")
    head: Head = Head(hidden=[2048], dim=128, batch_norm=False)
    targets: list[Count] = Field([1], min_length=1, description="crops that give keys; all others are queries for them")
    queue: Positive = Field(
        65536,
        description="keys of earlier steps, over all ranks; shorter for a small set, which would meet its own keys",
    )
    temperature: Annotated[float, Field(gt=0)] = Field(
        0.2, description="of the cosines; lower tells near images apart more sharply, and is less stable"
    )
    momentum: Momentum = Momentum(start=0.999, end=0.999, batch=256)

    panels: ClassVar[Sequence[Panel]] = (*RETRIEVAL_PANELS, *EMBEDDING_PANELS, *MOMENTUM_PANELS)

    def check(self, views: Views, batch: int) -> None:
        super().check(views, batch)
        fresh = batch * len(self.targets)
        if self.queue < fresh:
            raise ValueError(f"objective.queue {self.queue} is less than the {fresh} keys of a step")

    def chance_loss(self, views: Views, batch: int) -> float:
        """ln (K + 1), that of equal cosines. The loss rises above it while the first keys are replaced, and falls."""
        return math.log(self.queue + 1)

    def derived(self, batch: int) -> dict[str, float]:
        return {"queue_steps": self.queue / (batch * len(self.targets))}

    def problems(self, config: Config, images: int) -> list[str]:
        if self.queue >= images * len(self.targets):
            return ["objective.queue: the random keys that it begins with are never all replaced in this run"]
        return []

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Logits, with their softmax and gradient; the queue, its next state, and what a bad step goes back to."""
        queries = len(self.targets) * (views.count - 1) * batch // ranks
        return FLOAT * 3 * self.queue * (queries + self.head.dim)

    def collectives(self, views: Views, batch: int, ranks: int) -> list[Collectives]:
        """The keys that enter the queue."""
        return [Collectives("keys", "all_gather", ranks, 1, FLOAT * len(self.targets) * batch * self.head.dim)]

    def signs(self) -> Sequence[Sign]:
        return (
            *RETRIEVAL_SIGNS,
            Sign(
                ("top1",),
                lambda values: values["top1"] > 0.995,
                "{top1:.1%} of the queries find their own key",
                "keys give themselves away: BatchNorm over the whole batch (train.sync_bn: true), stronger "
                "views.augment, or a longer objective.queue",
            ),
            *EMBEDDING_SIGNS,
        )

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from seer_pipe.objectives.heads import projection
        from seer_pipe.objectives.momentum import MomentumNetwork

        made, copied = trunk(), trunk()
        dims = [made.width, *self.head.hidden, self.head.dim]
        head, copied_head = (projection(dims, self.head.batch_norm) for _ in range(2))
        return MomentumNetwork(
            made, head, copied, copied_head, original=head, targets=self.targets, unseen=self.only_target
        )

    @property
    def only_target(self) -> int | None:
        """A crop that is no query, since it is the only one with a key."""
        return self.targets[0] if len(self.targets) == 1 else None

    def objective(self, network: Network, setup: Setup) -> MocoV2:
        from seer_pipe.objectives.moco_v2.objective import MocoV2

        return MocoV2(
            setup.views.count,
            self.targets,
            self.momentum,
            setup.batch,
            queue=self.queue,
            dim=self.head.dim,
            temperature=self.temperature,
            seed=setup.seed,
            device=setup.device,
        )
