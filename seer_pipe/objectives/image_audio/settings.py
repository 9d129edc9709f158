"""The settings of pictures with their sounds, and what follows from them. No torch at import."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT, Collectives, gathered
from seer_pipe.objectives.pair_settings import CONSENSUS_PANEL, PairSettings
from seer_pipe.objectives.settings import (
    EMBEDDING_PANELS,
    EMBEDDING_SIGNS,
    RETRIEVAL_SIGNS,
    Momentum,
    Panel,
    Setup,
    Sign,
)
from seer_pipe.section import Count

if TYPE_CHECKING:
    from seer_pipe.config import Config, Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network, Objective

FEW_SAMPLES = 128  # of a batch; AVID tells a pair from 1024 others


class ImageAudioSettings(PairSettings):
    name: Literal["image_audio"] = Field(description="pictures and their sounds, after AVID, arXiv 2004.12943")
    temperature: Annotated[float, Field(gt=0)] = Field(
        0.07, description="of the cosines; lower tells near samples apart more sharply, and is less stable"
    )
    queue: Count = Field(
        0,
        description="samples of the last steps, this one's too, that a pair is told from, as momentum copies see them: "
        "for small batches; shorter than the set, which would meet its own; 0: those of the batch",
    )
    momentum: Momentum = Momentum(start=0.99, end=0.99, batch=256)
    positives: Count = Field(
        0, description="samples of the queue that a sample is brought near to: those nearest in picture and sound "
        "alike, as CMA does; 0: none"
    )  # fmt: skip
    positives_after: Count = Field(
        0, description="images until which there are no positives, while pictures and sounds learn to agree; a whole "
        "queue at least"
    )  # fmt: skip

    panels: ClassVar[Sequence[Panel]] = (
        Panel("Cosines", "Of a picture with its own sound, and with others: they must part.",
              {"positive_similarity": "own", "negative_similarity": "others"}),
        Panel("Partner found", "How often a picture's own sound is the nearest in the batch, and a sound's picture.",
              {"sound_found": "sound", "picture_found": "picture"}, percent=True),
        CONSENSUS_PANEL,
        *EMBEDDING_PANELS,
    )  # fmt: skip

    def chance_loss(self, views: Views, batch: int) -> float:
        """ln B, or of the queue without its positives: all sounds are equally near, and with positives all pictures."""
        return math.log(self.queue - self.positives if self.queue else batch)

    @property
    def knows_its_end(self) -> bool:
        return bool(self.queue) and self.momentum.start != self.momentum.end

    def check(self, views: Views, batch: int) -> None:
        if self.queue and self.queue < batch:
            raise ValueError(f"objective.queue {self.queue} is less than the {batch} samples of a step")
        if self.positives and self.positives + 1 >= self.queue:
            raise ValueError(f"objective.positives {self.positives} are of an objective.queue, and leave others in it; "
                             f"it is {self.queue}")  # fmt: skip

    def problems(self, config: Config, images: int) -> list[str]:
        if self.queue >= images:
            return ["objective.queue: the random keys that it begins with are never all replaced in this run"]
        if self.positives and self.positives_after >= images:
            return ["objective.positives_after: no positives are sought in this run"]
        field, many = ("objective.queue", self.queue) if self.queue else ("train.batch", config.train.batch)
        if many >= FEW_SAMPLES:
            return []
        return [f"{field} {many}: each pair is told from those of {many - 1} other samples; take {FEW_SAMPLES} or "
                "more, or an objective.queue of so many"]  # fmt: skip

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Similarities of this rank's rows to all in both directions, with their softmax and gradient, and the gathered
        embeddings; or the queue before and after its next write, and similarities within each modality and of keys."""
        if self.queue:
            rows = (views.count + 1) * (2 if self.positives else 1) + bool(self.positives)
            return FLOAT * self.queue * (3 * rows * batch // ranks + 4 * self.head.dim)
        rows = 2 * views.count * batch // ranks
        return FLOAT * (3 * rows * batch + 2 * (views.count + 1) * batch * self.head.dim)

    def collectives(self, views: Views, batch: int, ranks: int) -> list[Collectives]:
        """The embeddings of all ranks, and their gradient; or the keys of all ranks."""
        if self.queue:
            return [Collectives("keys", "all_gather", ranks, 1, FLOAT * 2 * batch * self.head.dim)]
        size = FLOAT * (views.count + 1) * batch * self.head.dim
        return gathered("embeddings", ranks, size)

    def signs(self) -> Sequence[Sign]:
        return (*RETRIEVAL_SIGNS, *EMBEDDING_SIGNS)

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from seer_pipe.objectives.pairs import MomentumPairNetwork

        if not self.queue:
            return super().network(trunk)
        (seeing, head), (copied, copied_head) = (self.parts(trunk) for _ in range(2))
        return MomentumPairNetwork(seeing, head, copied, copied_head, original=head, targets=[0])

    def objective(self, network: Network, setup: Setup) -> Objective:
        from seer_pipe.objectives.image_audio.objective import ImageAudio
        from seer_pipe.objectives.image_audio.queued import QueuedImageAudio

        return QueuedImageAudio(self, setup) if self.queue else ImageAudio(self.temperature)
