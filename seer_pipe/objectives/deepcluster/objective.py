"""DeepCluster-v2: spherical k-means of the memory gives labels and the vectors that predict them (Caron et al. 2020,
arXiv 2006.09882, appendix D).

The scores are cosines with the centroids, which have no gradient. A refresh starts from the centroids before it, so a
cluster stays what it was; Caron et al. draw others each time. What it draws follows from (seed, number of the refresh).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from seer_pipe.distributed.kmeans import kmeans
from seer_pipe.objectives.clusters import Clustered
from seer_pipe.objectives.deepcluster.settings import DeepClusterSettings
from seer_pipe.objectives.heads import unit


class DeepCluster(Clustered):
    settings: DeepClusterSettings

    def embedded(self, outputs: Any) -> Tensor:
        return unit(outputs)

    def scores(self, outputs: object, embeddings: Tensor, head: int) -> Tensor:
        return embeddings @ self.centroids[head].to(embeddings.dtype).T

    def recluster(self, head: int, rows: Tensor, number: int) -> None:
        before = self.centroids[head]
        found = kmeans(
            rows,
            len(before),
            seed=self._seed,
            number=number * len(self.centroids) + head,
            start=before if before.any() else None,
            iterations=self.settings.kmeans_iterations,
        )
        before.copy_(found.centroids)
