"""What features are worth where nobody has labels: an image's one half finds its other half."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from seer_pipe.data.order import Ints
from seer_pipe.data.views import Crops, centre
from seer_pipe.evaluate.features import Images, extract
from seer_pipe.evaluate.knn import neighbours
from seer_pipe.evaluate.labels import left_out
from seer_pipe.evaluate.pictures import ShardPictures
from seer_pipe.evaluate.stages import Reader, keep_stages
from seer_pipe.evaluate.workbench import on_bench
from seer_pipe.shards import ShardSet


def retrieval_accuracy(first: Tensor, second: Tensor) -> float:
    """Share of rows of ``first`` [n, D] whose nearest row of ``second`` [n, D] is their own."""
    _, nearest = neighbours(first, second, 1)
    return float((nearest[:, 0] == torch.arange(len(first))).float().mean())


def evaluate_retrieval(path: Path, data: str, *, untrained: bool, stage: str | None = None) -> dict[str, Any] | None:
    pictures = ShardPictures(ShardSet.open(data))
    with on_bench(path, pictures, untrained, clips=True) as bench:
        if not bench.world.is_first:
            return None
        reader = Reader(bench.subject.trunk, bench.readings(stage, grid=False))
        size = bench.subject.size
        images = Images(pictures, size, bench.subject.frames, device=str(bench.world.device))
        try:
            numbers = pictures.usable
            first = extract(reader, images, numbers, lambda _, height, width: _half(height, width, size, 0))
            second = extract(reader, images, numbers, lambda _, height, width: _half(height, width, size, 1))
        finally:
            images.close()
        left = Counter(excluded=len(pictures) - len(numbers), unreadable=len(numbers) - len(first.samples))
        about = {"images": len(first.samples), "left_out": left_out(left), "data": data}
        results = [
            (reading, {"accuracy": retrieval_accuracy(*halves), **about})
            for reading, *halves in zip(
                reader.readings, reader.split(first.matrix), reader.split(second.matrix), strict=True
            )
        ]
        return keep_stages(path, "retrieval", stage, results, bench.subject, untrained, lambda found: found["accuracy"])


def _half(height: Ints, width: Ints, size: int, which: int) -> Crops:
    """A square at the one or at the other end of the longer side, as large as half of that side allows."""
    crop = centre(height, width, size, size)
    side = np.maximum(1, np.minimum(np.maximum(height, width) // 2, np.minimum(height, width)))
    lying = width >= height
    top = np.where(lying, (height - side) // 2, which * (height - side))
    left = np.where(lying, which * (width - side), (width - side) // 2)
    crop.box[:] = np.stack([top, left, side, side], axis=1)
    return crop
