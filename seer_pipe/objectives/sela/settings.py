"""SeLa's settings, and what follows from them. No torch at import."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from seer_pipe.objectives.cluster_settings import ClusterSettings
from seer_pipe.objectives.settings import Setup
from seer_pipe.section import Positive

if TYPE_CHECKING:
    from torch import nn

    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network
    from seer_pipe.objectives.sela.objective import Sela


class SelaSettings(ClusterSettings):
    name: Literal["sela"] = Field(description="SeLa, version 2, arXiv 1911.05371")
    epsilon: Annotated[float, Field(gt=0)] = Field(0.05, description="weight of the entropy; smaller is sharper")
    sinkhorn_iterations: Positive = Field(30, description="times that a refresh evens the clusters out")

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from seer_pipe.objectives.clusters import network_of
        from seer_pipe.objectives.swav.objective import SwavHead

        def head(dims: list[int]) -> tuple[nn.Module, nn.Module]:
            made = SwavHead(dims, self.heads * self.prototypes, self.head.batch_norm)
            return made, made.projection

        return network_of(self, trunk, head)

    def objective(self, network: Network, setup: Setup) -> Sela:
        from seer_pipe.objectives.sela.objective import Sela
        from seer_pipe.objectives.swav.objective import SwavHead

        assert isinstance(network.head, SwavHead)
        return Sela(network.head, self, setup)
