"""SwAV's settings, and what follows from them. No torch at import."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT, Collectives
from seer_pipe.objectives.settings import (
    EMBEDDING_PANELS,
    EMBEDDING_SIGNS,
    Head,
    Panel,
    Settings,
    Setup,
    Sign,
    uniform_sign,
)
from seer_pipe.section import Count, Positive

if TYPE_CHECKING:
    from torch import Tensor, nn

    from seer_pipe.config import Config, Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network
    from seer_pipe.objectives.swav.objective import Swav

LOG_DOMAIN_BELOW = 0.03
"""Below this epsilon the smallest term of cosine scores, exp(−2/epsilon), nears the end of float32."""


class SwavSettings(Settings):
    name: Literal["swav"] = Field("swav", description="SwAV, arXiv 2006.09882")
    head: Head = Head()
    prototypes: Annotated[int, Field(ge=2)] = Field(
        3000, description="clusters; some times as many as there are kinds, and fewer where many are dead"
    )
    temperature: Annotated[float, Field(gt=0)] = Field(0.1, description="of the predictions; lower makes them sharper")
    epsilon: Annotated[float, Field(gt=0)] = Field(
        0.05, description="of the codes: lower makes them sharper; 0.03 where codes are near uniform"
    )
    sinkhorn_iterations: Positive = Field(3, description="that even the clusters out; more where few are ever used")
    assign: list[Count] = Field(
        [0, 1], min_length=1, description="crops whose codes the others predict, from 0: the large ones"
    )
    freeze_images: Count = Field(
        0, description="prototypes do not move before so many images; an epoch where the loss stays at chance"
    )
    queue: Count = Field(
        0, description="embeddings kept per assignment crop, a multiple of the batch; for batches of fewer images than "
        "there are prototypes"
    )  # fmt: skip
    queue_start_images: Count = Field(
        0, description="images before the queue is used: its first embeddings say little; 15 epochs as published"
    )
    allow_empty_prototypes: bool = Field(
        False, description="more prototypes than batch and queue hold images; some are then empty in every step"
    )

    panels: ClassVar[Sequence[Panel]] = (
        Panel("Entropies", "Codes near chance say nothing; a low mean prediction uses few prototypes.",
              {"code_entropy": "of a code", "prediction_entropy": "of the mean prediction"}, chance=True),
        Panel("Prototypes", "Used by a batch, and dead: nearest to no image for long.",
              {"prototypes_used": "used", "prototypes_dead": "dead"}, percent=True),
        *EMBEDDING_PANELS,
    )  # fmt: skip

    def check(self, views: Views, batch: int) -> None:
        self.check_crops(views, "assign")
        if self.queue % batch:
            raise ValueError(f"objective.queue must be a multiple of train.batch ({batch})")
        known = batch + self.queue
        if known < self.prototypes and not self.allow_empty_prototypes:
            raise ValueError(
                f"objective.prototypes {self.prototypes} is more than train.batch + objective.queue ({known}), so some "
                "stay empty in every step: lower it, lengthen the queue, or set objective.allow_empty_prototypes"
            )

    def chance_loss(self, views: Views, batch: int) -> float:
        """ln K, that of uniform predictions."""
        return math.log(self.prototypes)

    @property
    def settled_images(self) -> int:
        return self.freeze_images

    def derived(self, batch: int) -> dict[str, float]:
        return {
            "freeze_steps": math.ceil(self.freeze_images / batch),
            "queue_start_steps": math.ceil(self.queue_start_images / batch),
        }

    def fitted(self, batch: int) -> list[str]:
        return [f"objective.prototypes={min(batch, self.prototypes)}"]

    def problems(self, config: Config, images: int) -> list[str]:
        found = []
        if self.freeze_images >= images:
            found.append("objective.freeze_images: the prototypes never move in this run")
        if self.queue and self.queue_start_images >= images:
            found.append("objective.queue_start_images: the queue is never used in this run")
        return found

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Scores, with their softmax and gradient, and the queue."""
        scores = 3 * FLOAT * views.count * (batch // ranks) * self.prototypes
        return scores + FLOAT * len(self.assign) * self.queue * self.head.dim

    def collectives(self, views: Views, batch: int, ranks: int) -> list[Collectives]:
        """Sinkhorn's sums, and the rows that enter the queue; prototypes no longer frozen, the queue full."""
        crops, iterations = len(self.assign), self.sinkhorn_iterations
        scores = FLOAT * crops * self.prototypes
        if self.epsilon < LOG_DOMAIN_BELOW:
            calls, size = 2 * iterations, 2 * iterations * scores
        else:
            calls, size = 1 + iterations, FLOAT * crops + iterations * scores
        found = [Collectives("Sinkhorn", "all_reduce", ranks, calls, size)]
        if self.queue:
            found.append(Collectives("queue", "all_gather", ranks, 1, FLOAT * crops * batch * self.head.dim))
        return found

    def signs(self) -> Sequence[Sign]:
        """What to try is what users and authors found to help (facebookresearch/swav, issues 12, 62, 69, 88, 120)."""
        chance = math.log(self.prototypes)
        return (
            uniform_sign(
                chance,
                "a longer objective.freeze_images, fewer prototypes, a smaller objective.epsilon or queue, a lower "
                "optimizer.lr",
            ),
            Sign(
                ("code_entropy",),
                lambda values: values["code_entropy"] > 0.98 * chance,
                f"the entropy of a code is {{code_entropy:.2f}} of at most {chance:.2f}",
                "codes are as good as uniform: try a smaller objective.epsilon",
            ),
            Sign(
                ("prediction_entropy",),
                lambda values: values["prediction_entropy"] < 0.1 * chance,
                f"the entropy of the mean prediction is {{prediction_entropy:.2f}} of at most {chance:.2f}",
                "few prototypes are ever predicted: try more objective.sinkhorn_iterations, fewer prototypes, or a "
                "lower optimizer.lr",
            ),
            *EMBEDDING_SIGNS,
            Sign(
                ("prototypes_dead",),
                lambda values: values["prototypes_dead"] > 0.5,
                "{prototypes_dead:.0%} of the prototypes are dead",
                "more than half of the prototypes are nearest to no image: try fewer prototypes, or a larger batch or "
                "queue",
            ),
        )

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from seer_pipe.objectives.base import Network
        from seer_pipe.objectives.swav.objective import SwavHead

        made = trunk()
        dims = [made.width, *self.head.hidden, self.head.dim]
        return Network(made, SwavHead(dims, self.prototypes, self.head.batch_norm))

    def objective(self, network: Network, setup: Setup) -> Swav:
        from seer_pipe.objectives.swav.objective import Swav, SwavHead

        assert isinstance(network.head, SwavHead)
        return Swav(
            network.head,
            crops=setup.views.count,
            assignment=self.assign,
            temperature=self.temperature,
            eps=self.epsilon,
            iterations=self.sinkhorn_iterations,
            freeze_images=self.freeze_images,
            queue_length=self.queue,
            queue_start=self.queue_start_images,
            device=setup.device,
        )

    @property
    def clusters(self) -> int:
        return self.prototypes

    def shares(self, head: nn.Module, features: Tensor) -> Tensor:
        """The prediction of arXiv 2006.09882, equation 2: softmax(scores / temperature)."""
        shares: Tensor = (head(features).scores / self.temperature).softmax(dim=1)
        return shares
