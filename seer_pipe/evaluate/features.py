"""Features of a whole shard set under a trunk."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import nn

from seer_pipe.data.chunks import Samples
from seer_pipe.data.dali import Augmenter, BadImages
from seer_pipe.data.order import Plan
from seer_pipe.data.stream import Stream
from seer_pipe.data.views import Crops, CropSpec, centre
from seer_pipe.errors import UserError
from seer_pipe.shards import ShardSet

#: Short side before the central crop, in parts of the crop: ImageNet's 256 for 224.
RESIZE = 256 / 224


@dataclass(frozen=True)
class Features:
    """``matrix``: [n, width] float32 on the CPU, a row for each of ``samples`` (numbers in the set)."""

    matrix: torch.Tensor
    samples: list[int]


class Images:
    """The images of a shard set in its own order, decoded and cropped in batches.

    ``view``: from arrays of heights and widths [n] to the box of each image. What cannot be decoded is left out.
    """

    def __init__(self, shards: ShardSet, size: int, *, batch: int = 64, device: str = "cpu", threads: int = 2) -> None:
        if len(shards) == 0:
            raise UserError(f"{shards.store.url}: the shard set is empty")
        self.size, self._total, self._batch = size, len(shards), min(batch, len(shards))
        self._plan = Plan(shards.counts, 1, seed=0)
        self._stream = Stream(shards, self._plan, np.arange(1), threads=threads)
        self._augmenter = Augmenter([CropSpec(1, size, (1, 1))], device=device, threads=threads, max_batch=self._batch)

    def centre(self, height: np.ndarray, width: np.ndarray) -> Crops:
        """The usual evaluation view: short side to 8/7 of the size, then the middle."""
        return centre(height, width, self.size, round(self.size * RESIZE))

    def batches(
        self, view: Callable[[np.ndarray, np.ndarray], Crops] | None = None
    ) -> Iterator[tuple[list[int], torch.Tensor]]:
        """Numbers of the samples, and their pixels [n, 3, size, size], until the set is through."""
        for start in range(0, self._total, self._batch):
            numbers = np.arange(start, min(start + self._batch, self._total))
            samples = self._stream.read(self._plan.places(numbers))
            samples = samples.take([row for row in range(len(samples)) if row not in samples.reasons])
            while len(samples):
                try:
                    yield samples.places.sample.tolist(), self._decode(samples, view or self.centre)
                    break
                except BadImages as error:
                    samples = samples.take([row for row in range(len(samples)) if row not in set(error.indices)])

    def _decode(self, samples: Samples, view: Callable[[np.ndarray, np.ndarray], Crops]) -> torch.Tensor:
        images = [image for image in samples.data if image is not None]
        return self._augmenter(images, [view(samples.height, samples.width)])[0]

    def close(self) -> None:
        self._stream.close()
        self._augmenter.close()


@torch.inference_mode()
def extract(
    trunk: nn.Module, images: Images, view: Callable[[np.ndarray, np.ndarray], Crops] | None = None
) -> Features:
    """The trunk's features in evaluation mode, one row an image."""
    trunk.eval()
    device = next(trunk.parameters()).device
    numbers, rows = [], []
    for batch, pixels in images.batches(view):
        numbers += batch
        rows.append(trunk(pixels.to(device)).float().cpu())
    return Features(torch.cat(rows), numbers)
