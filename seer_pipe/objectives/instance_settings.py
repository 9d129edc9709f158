"""What objectives that tell images apart by a memory have in common. No torch at import."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT, Collectives
from seer_pipe.objectives.bank_settings import BankSettings
from seer_pipe.objectives.settings import (
    EMBEDDING_PANELS,
    EMBEDDING_SIGNS,
    RETRIEVAL_PANELS,
    Panel,
    Settings,
    Sign,
)
from seer_pipe.section import Positive

if TYPE_CHECKING:
    from seer_pipe.config import Views


class InstanceSettings(Settings):
    """Of an objective whose embeddings look for their image's row in a bank, which has all images of the set."""

    loss: Literal["infonce", "nce"] = Field(
        "infonce", description="infonce: one row among the negatives; nce: each against noise, as first published"
    )
    negatives: Positive = Field(4096, description="rows of other images that a step is told from, over all ranks")
    temperature: Annotated[float, Field(gt=0)] = Field(
        0.07, description="of the cosines; lower tells near images apart more sharply, and is less stable"
    )
    bank: BankSettings = BankSettings()

    rows: ClassVar[int] = 1
    """That an image has in the bank."""
    panels: ClassVar[Sequence[Panel]] = (
        *RETRIEVAL_PANELS,
        Panel("Remembered", "Share of a batch that has a row in the bank.",
              {"remembered": "remembered"}, percent=True),
        *EMBEDDING_PANELS,
    )  # fmt: skip

    @property
    def numbers(self) -> int:
        """Of an embedding."""
        raise NotImplementedError

    def looking(self, views: Views) -> int:
        """Embeddings of an image that look for its row."""
        return views.count

    def chance_loss(self, views: Views, batch: int) -> float:
        """That of embeddings at right angles to all rows: ln (K + 1), or as NCE has it, in which N cancels out."""
        return self.guessing(self.negatives)

    def guessing(self, negatives: int) -> float:
        if self.loss == "infonce":
            return math.log(negatives + 1)
        noise = negatives * mean_exponential(self.numbers, self.temperature)
        return math.log1p(noise) + negatives * math.log1p(1 / noise)

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Similarities with their softmax and gradient, and the rows of the negatives, as they are and summed."""
        return FLOAT * self.negatives * (3 * self.looking(views) * batch // ranks + 2 * self.rows * self.numbers)

    def kept(self, samples: int, ranks: int) -> float:
        return self.bank.bytes(samples, self.rows * self.numbers, ranks)

    def collectives(self, views: Views, batch: int, ranks: int) -> list[Collectives]:
        """Those of the bank, the negatives, and how many have a row."""
        numbers = self.rows * self.numbers
        return [
            *self.bank.collectives(numbers, batch, ranks),
            Collectives("negatives", "all_reduce", ranks, 1, FLOAT * self.negatives * numbers),
            Collectives("count", "all_reduce", ranks, 1, FLOAT),
        ]

    def signs(self) -> Sequence[Sign]:
        return (
            Sign(
                ("positive_similarity", "negative_similarity", "remembered"),
                lambda values: (
                    values["remembered"] > 0.5 and values["positive_similarity"] - values["negative_similarity"] < 0.05
                ),
                "an image's cosine with its own row is {positive_similarity:.2f}, with those of others "
                "{negative_similarity:.2f}",
                "images are not told apart: try a lower optimizer.lr, more objective.negatives, or a larger "
                "objective.temperature",
            ),
            *EMBEDDING_SIGNS,
        )


def mean_exponential(dim: int, temperature: float) -> float:
    """The mean of exp(cos / temperature) over directions in ``dim`` dimensions: 0F1(dim / 2; 1 / (4 temperature²)).

    At 128 and 0.07 it is 2.2.
    """
    total = term = 1.0
    count = 0
    while term > 1e-17 * total:
        term *= 0.25 / temperature**2 / ((count + 1) * (dim / 2 + count))
        total, count = total + term, count + 1
    return total
