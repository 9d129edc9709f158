"""AVID's settings. No torch at import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

from pydantic import Field

from seer_pipe.objectives.pair_settings import PairBankSettings
from seer_pipe.objectives.settings import Setup

if TYPE_CHECKING:
    from seer_pipe.objectives.avid.objective import Avid
    from seer_pipe.objectives.base import Network


class AvidSettings(PairBankSettings):
    name: Literal["avid"] = Field(description="AVID, pictures and their sounds, arXiv 2004.12943")

    def objective(self, network: Network, setup: Setup) -> Avid:
        from seer_pipe.objectives.avid.objective import Avid

        return Avid(self, setup)
