"""Projection heads that objectives put on a trunk."""

from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import torch
from torch import Tensor, nn

LastNorm = Literal["none", "affine", "plain"]


def projection(
    dims: Sequence[int], batch_norm: bool, *, bias: bool = True, last_bias: bool = True, last_norm: LastNorm = "none"
) -> nn.Sequential:
    """Linear layers from dims[0] to dims[-1] with (BatchNorm and) ReLU between them.

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
        layers.append(nn.ReLU(inplace=True))
    layers.append(nn.Linear(dims[-2], dims[-1], bias=last_bias))
    if last_norm != "none":
        layers.append(nn.BatchNorm1d(dims[-1], affine=last_norm == "affine"))
    return nn.Sequential(*layers)


def full_precision(like: Tensor) -> torch.autocast:
    """No autocast on the device of ``like``. (torch's own knows no meta device, where networks are only outlined.)"""
    return torch.autocast("cpu" if like.is_meta else like.device.type, enabled=False)
