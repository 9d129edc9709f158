"""NPID's settings. No torch at import."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from seer_pipe.objectives.instance_settings import InstanceSettings
from seer_pipe.objectives.settings import Head, Setup

if TYPE_CHECKING:
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network
    from seer_pipe.objectives.npid.objective import Npid


class NpidSettings(InstanceSettings):
    """The bank holds a row for every sample of the set."""

    name: Literal["npid"] = Field(description="NPID, arXiv 1805.01978")
    head: Head = Head(hidden=[], dim=128, batch_norm=False)

    @property
    def numbers(self) -> int:
        return self.head.dim

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from seer_pipe.objectives.base import Network
        from seer_pipe.objectives.heads import projection

        made = trunk()
        return Network(made, projection([made.width, *self.head.hidden, self.head.dim], self.head.batch_norm))

    def objective(self, network: Network, setup: Setup) -> Npid:
        from seer_pipe.objectives.npid.objective import Npid

        return Npid(self, setup)
