"""CMA's settings, and what follows from them. No torch at import."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT, Collectives
from seer_pipe.objectives.instance_settings import InstanceSettings
from seer_pipe.objectives.pair_settings import CONSENSUS_PANEL, PairBankSettings
from seer_pipe.objectives.settings import Panel, Setup
from seer_pipe.section import Positive

if TYPE_CHECKING:
    from seer_pipe.config import Config, Views
    from seer_pipe.objectives.base import Network
    from seer_pipe.objectives.cma.objective import Cma

NUMBER = 4  # bytes of a positive's id
#: Similarities that are held at once while positives are searched for.
PIECE = 1 << 25


class CmaSettings(PairBankSettings):
    name: Literal["cma"] = Field(description="CMA, pictures and their sounds, section 4 of arXiv 2004.12943")
    loss: Literal["infonce", "nce"] = Field(
        "infonce",
        description="infonce: one row among the negatives; nce: each row against noise, as published, which "
        "a short training does not bear",
    )
    positives: Positive = Field(
        32, description="samples that a sample is brought near to: those nearest in the bank in picture and sound alike"
    )
    within_negatives: Positive = Field(64, description="of objective.negatives, those that positives are told from")
    refresh_images: Positive = Field(
        11_603_350, description="images between two searches for positives; until the first one it is avid"
    )

    panels: ClassVar[Sequence[Panel]] = (
        *InstanceSettings.panels,
        CONSENSUS_PANEL,
    )  # fmt: skip

    def check(self, views: Views, batch: int) -> None:
        super().check(views, batch)
        if self.within_negatives > self.negatives:
            raise ValueError(f"objective.within_negatives {self.within_negatives} is more than objective.negatives "
                             f"{self.negatives}")  # fmt: skip

    def chance_loss(self, views: Views, batch: int) -> float:
        """Half of either, at right angles to all rows; from the first search on."""
        return (self.guessing(self.negatives) + self.guessing(self.within_negatives)) / 2

    def derived(self, batch: int) -> dict[str, float]:
        return {"refresh_steps": math.ceil(self.refresh_images / batch)}

    def problems(self, config: Config, images: int) -> list[str]:
        if self.refresh_images >= images:
            return ["objective.refresh_images: no positives are searched for in this run, so it is that of avid"]
        return []

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Besides AVID's the rows of positives, sent and received; or at a refresh similarities of picture, of sound,
        and the lesser, whichever is more."""
        near = 2 * (batch // ranks) * self.positives * self.rows * self.numbers
        return super().memory(views, batch, ranks) + FLOAT * max(near, 3 * PIECE)

    def kept(self, samples: int, ranks: int) -> float:
        """The bank, and during a search ids of the positives of the rank's own samples, with how near they are."""
        return super().kept(samples, ranks) + 2 * NUMBER * self.positives * samples / ranks

    def kept_on_host(self, samples: int, ranks: int) -> float:
        """Ids of all samples' positives."""
        return NUMBER * self.positives * samples

    def collectives(self, views: Views, batch: int, ranks: int) -> list[Collectives]:
        ids, read, _ = self.bank.collectives(self.rows * self.numbers, batch * self.positives, ranks)
        return [*super().collectives(views, batch, ranks), ids, read]

    def objective(self, network: Network, setup: Setup) -> Cma:
        from seer_pipe.objectives.cma.objective import Cma

        return Cma(self, setup)
