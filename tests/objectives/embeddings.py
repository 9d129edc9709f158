"""Embeddings of few images, and what an objective measures and finds in them."""

import torch
from torch import Tensor

from seer_pipe.objectives.base import Objective
from seer_pipe.objectives.settings import Settings
from tests.objectives.moments import at

BATCH = 6


def alike(crops: int, dim: int) -> Tensor:
    """[crops · BATCH, dim] in crop-major order, float64; crops of an image are alike."""
    generator = torch.Generator().manual_seed(crops)
    image = torch.randn(1, BATCH, dim, generator=generator, dtype=torch.float64)
    return (image + torch.randn(crops, BATCH, dim, generator=generator, dtype=torch.float64)).flatten(0, 1)


def measured(objective: Objective, rows: Tensor) -> dict[str, float]:
    return {name: float(value) for name, value in objective.loss(rows, at(0), log=True)[1].items()}


def found(settings: Settings, values: dict[str, float]) -> list[bool]:
    """Whether each sign that speaks finds the run ill."""
    return [not judged[0] for sign in settings.signs() if (judged := sign.judge(values)) is not None]
