"""The settings of pictures with their sounds, and what follows from them. No torch at import."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT, Collectives
from seer_pipe.objectives.pair_settings import PairSettings
from seer_pipe.objectives.settings import (
    EMBEDDING_PANELS,
    EMBEDDING_SIGNS,
    RETRIEVAL_SIGNS,
    Panel,
    Setup,
    Sign,
)

if TYPE_CHECKING:
    from seer_pipe.config import Config, Views
    from seer_pipe.objectives.base import Network, Objective

FEW_SAMPLES = 128  # of a batch; AVID tells a pair from 1024 others


class ImageAudioSettings(PairSettings):
    name: Literal["image_audio"] = Field(description="pictures and their sounds, after AVID, arXiv 2004.12943")
    temperature: Annotated[float, Field(gt=0)] = Field(
        0.07, description="of the cosines; lower tells near samples apart more sharply, and is less stable"
    )

    panels: ClassVar[Sequence[Panel]] = (
        Panel("Cosines", "Of a picture with its own sound, and with others: they must part.",
              {"positive_similarity": "own", "negative_similarity": "others"}),
        Panel("Partner found", "How often a picture's own sound is the nearest in the batch, and a sound's picture.",
              {"sound_found": "sound", "picture_found": "picture"}, percent=True),
        *EMBEDDING_PANELS,
    )  # fmt: skip

    def chance_loss(self, views: Views, batch: int) -> float:
        """ln B: all sounds of the batch are equally near."""
        return math.log(batch)

    def problems(self, config: Config, images: int) -> list[str]:
        batch = config.train.batch
        if batch >= FEW_SAMPLES:
            return []
        return [f"train.batch {batch}: each pair is told from those of {batch - 1} other samples; take {FEW_SAMPLES} "
                "or more"]  # fmt: skip

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Similarities of this rank's rows to all in both directions, with their softmax and gradient, and the gathered
        embeddings."""
        rows = 2 * views.count * batch // ranks
        return FLOAT * (3 * rows * batch + 2 * (views.count + 1) * batch * self.head.dim)

    def collectives(self, views: Views, batch: int, ranks: int) -> list[Collectives]:
        """The embeddings of all ranks, and their gradient."""
        size = FLOAT * (views.count + 1) * batch * self.head.dim
        return [
            Collectives("embeddings", "all_gather", ranks, 1, size),
            Collectives("gradients of embeddings", "reduce_scatter", ranks, 1, size),
        ]

    def signs(self) -> Sequence[Sign]:
        return (*RETRIEVAL_SIGNS, *EMBEDDING_SIGNS)

    def objective(self, network: Network, setup: Setup) -> Objective:
        from seer_pipe.objectives.image_audio.objective import ImageAudio

        return ImageAudio(self.temperature)
