"""kNN accuracy of a network while it trains."""

from __future__ import annotations

import torch
from torch import Tensor

from seer_pipe import config as settings
from seer_pipe.evaluate.features import Images
from seer_pipe.evaluate.knn import knn_accuracy
from seer_pipe.evaluate.labels import open_labelled
from seer_pipe.objectives.base import Network


class KnnProbe:
    """Classifies the images of a small labelled shard set by each other, under the trunk's features.

    Every rank goes over all of the set, in step with the others: a sharded network needs all ranks in each forward,
    and all arrive at the same number. ``size``: pixels of the central crop; ``frames``: that are seen together.
    """

    def __init__(
        self, probe: settings.Probe, size: int, frames: settings.Frames | None = None, threads: int = 2
    ) -> None:
        self._labelled = open_labelled(probe.path, probe.labels)
        self._size, self._frames, self._threads = size, frames, threads

    @torch.no_grad()
    def __call__(self, network: Network) -> float:
        """The leave-one-out accuracy. The network is left in evaluation mode."""
        network.eval()
        device = next(network.parameters()).device
        pooled: list[Tensor] = []
        images = Images(self._labelled.pictures, self._size, self._frames, threads=self._threads)
        try:
            found = []
            for numbers, pixels in images.batches(self._labelled.numbers):
                found += numbers
                pooled.append(network.features(pixels.to(device)).float())
        finally:
            images.close()
        features, labels = torch.cat(pooled).cpu(), torch.from_numpy(self._labelled.label_of[found])
        return knn_accuracy(features, labels, features, labels, leave_one_out=True)
