"""Projection heads that objectives put on a trunk."""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LastNorm = Literal["none", "affine", "plain"]


def projection(
    dims: Sequence[int],
    batch_norm: bool,
    *,
    bias: bool = True,
    last_bias: bool = True,
    last_norm: LastNorm = "none",
    activation: Callable[[], nn.Module] = partial(nn.ReLU, inplace=True),
) -> nn.Sequential:
    """Linear layers from dims[0] to dims[-1] with (BatchNorm and) ReLU, or another activation, between them.

    With BatchNorm it is SwAV's head ([2048, 2048, 128]); without, SEER's ([width, 8192, 8192, 256]).

    Args:
        dims: widths, from that of the features to that of the embeddings.
        batch_norm: BatchNorm after each layer but the last.
        bias, last_bias: of the layers but the last, and of the last.
        last_norm: BatchNorm after the last layer: none, with scale and shift, or plain without.
    """
    layers: list[nn.Module] = []
    for width, next_width in pairwise(dims[:-1]):
        layers.append(nn.Linear(width, next_width, bias=bias))
        if batch_norm:
            layers.append(nn.BatchNorm1d(next_width))
        layers.append(activation())
    layers.append(nn.Linear(dims[-2], dims[-1], bias=last_bias))
    if last_norm != "none":
        layers.append(nn.BatchNorm1d(dims[-1], affine=last_norm == "affine"))
    return nn.Sequential(*layers)


def full_precision(like: Tensor) -> torch.autocast:
    """No autocast on the device of ``like``. (torch's own knows no meta device, where networks are only outlined.)"""
    return torch.autocast("cpu" if like.is_meta else like.device.type, enabled=False)


def unit(rows: Tensor) -> Tensor:
    """Rows [n, D] at unit norm, at least in float32."""
    return F.normalize(rows.to(torch.promote_types(rows.dtype, torch.float32)), dim=1)


class Prediction(NamedTuple):
    """Of rows in crop-major order."""

    projected: Tensor  # [V · n, D]
    predicted: Tensor  # [V · n, D], from the projected ones


class PredictorHead(nn.Module):
    """A projection, and a predictor that goes from it to what other crops project to."""

    def __init__(self, project: nn.Sequential, predict: nn.Sequential) -> None:
        super().__init__()
        self.project, self.predict = project, predict

    def forward(self, features: Tensor) -> Prediction:
        projected = self.project(features)
        return Prediction(projected, self.predict(projected))


def agreement(predicted: Tensor, targets: Tensor, crops: int, places: Tensor) -> Tensor:
    """How alike targets and predictions are: cosines [A], means over images and over all crops but the target's own.

    Args:
        predicted: [V · n, D], with gradient, of all V crops.
        targets: [A · n, D] of the crops that ``places`` [A] names; no gradient passes.
    """
    by_crop = unit(predicted).unflatten(0, (crops, -1))
    others = by_crop.sum(0) - by_crop.index_select(0, places)  # cosines add up
    return (others * unit(targets.detach()).unflatten(0, (len(places), -1))).sum(2).mean(1) / (crops - 1)
