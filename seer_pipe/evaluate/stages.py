"""Features of any stage of a trunk, as classifiers see them.

What a pretext task needs is not what a classifier needs, and the last stage serves the task: a rotation network is best
before it. Neighbours are found by a stage's mean over its map, as they are at the last one. Linear classifiers are
compared across stages on maps that are averaged over a grid, so that each stage has about as many numbers, 8,192 to
9,216 of a ResNet-50 (Zhang et al., ECCV 2016, section 3.2; Goyal et al., ICCV 2019, whose pooling VISSL has).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seer_pipe.errors import UserError
from seer_pipe.evaluate.results import keep
from seer_pipe.evaluate.subject import Subject
from seer_pipe.models import Trunk

NUMBERS = 9216  # at most, of a stage's grid
ALL = "all"  # the stages, one beside the other


class Reading(NamedTuple):
    """A stage, from 1, and the side of the grid that its map is averaged over."""

    stage: int
    side: int
    width: int  # features

    @property
    def about(self) -> dict[str, Any]:
        """For a result."""
        return {"stage": self.stage, "pooling": f"{self.side}x{self.side}", "features": self.width}


class Reader(nn.Module):
    """Images [n, 3, H, W], or clips, to the features of each of ``readings``, one beside the other: [n, width]."""

    def __init__(self, trunk: Trunk, readings: Sequence[Reading]) -> None:
        super().__init__()
        self.trunk, self.readings = trunk, list(readings)
        self.width = sum(reading.width for reading in readings)

    def forward(self, images: Tensor) -> Tensor:
        maps = self.trunk.stage_maps(images)
        return torch.cat([F.adaptive_avg_pool2d(maps[r.stage - 1], r.side).flatten(1) for r in self.readings], dim=1)

    def split(self, features: Tensor) -> tuple[Tensor, ...]:
        """The features of each reading."""
        return features.split([reading.width for reading in self.readings], dim=1)


@torch.no_grad()
def readings(trunk: Trunk, size: int, stage: str | None, *, grid: bool) -> list[Reading]:
    """What ``--stage`` means for images of ``size`` pixels: a stage's number, ``all``, or the trunk's own features.

    ``grid``: a stage's map is averaged over the largest grid of at most ``NUMBERS`` features; else, and where no stage
    is named, over all of it.
    """
    last = len(trunk.stages)
    known: dict[str | None, list[int]] = {str(n): [n] for n in range(1, last + 1)}
    known |= {None: [last], ALL: list(range(1, last + 1))}
    if stage not in known:
        raise UserError(f"--stage {stage}: {trunk.name} has the stages 1 to {last}; give one of them, or {ALL}")
    if stage is None or not grid:
        return [Reading(n, 1, trunk.stages[n - 1][0]) for n in known[stage]]
    trunk.eval()
    frames = [1] if trunk.takes_clips else []  # maps are means over time: any number has the same
    maps = trunk.stage_maps(torch.zeros(1, 3, *frames, size, size, device=next(trunk.parameters()).device))
    found = []
    for n in known[stage]:
        channels, side = maps[n - 1].shape[1], maps[n - 1].shape[2]
        while side > 1 and channels * side**2 > NUMBERS:
            side -= 1
        found.append(Reading(n, side, channels * side**2))
    return found


def keep_stages(
    path: Path,
    name: str,
    stage: str | None,
    results: Sequence[tuple[Reading, dict[str, Any]]],
    subject: Subject,
    untrained: bool,
    score: Callable[[dict[str, Any]], float],
) -> dict[str, Any]:
    """Keep the result of each reading under the name of its stage, and return it; of ``all``, a table of them.

    ``best_stage``: the one of the highest ``score``.
    """
    kept = {
        reading.stage: keep(
            path, name if stage is None else f"{name}-stage{reading.stage}", result | reading.about, subject, untrained
        )
        for reading, result in results
    }
    if stage != ALL:
        return next(iter(kept.values()))
    best = max(kept, key=lambda number: score(kept[number]))
    return {"evaluation": name, "best_stage": best, "stages": {str(number): one for number, one in kept.items()}}
