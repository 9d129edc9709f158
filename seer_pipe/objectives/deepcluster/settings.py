"""DeepCluster's settings, and what follows from them. No torch at import."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from seer_pipe.objectives.cluster_settings import ClusterSettings
from seer_pipe.objectives.settings import Setup
from seer_pipe.section import Positive

if TYPE_CHECKING:
    from torch import nn

    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network
    from seer_pipe.objectives.deepcluster.objective import DeepCluster


class DeepClusterSettings(ClusterSettings):
    name: Literal["deepcluster"] = Field(description="DeepCluster, version 2, arXiv 2006.09882")
    kmeans_iterations: Positive = Field(10, description="times that the centroids move at a refresh")

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from seer_pipe.objectives.clusters import network_of
        from seer_pipe.objectives.heads import projection

        def head(dims: list[int]) -> tuple[nn.Module, nn.Module]:
            made = projection(dims, self.head.batch_norm)
            return made, made

        return network_of(self, trunk, head)

    def objective(self, network: Network, setup: Setup) -> DeepCluster:
        from seer_pipe.objectives.deepcluster.objective import DeepCluster

        return DeepCluster(self, setup)
