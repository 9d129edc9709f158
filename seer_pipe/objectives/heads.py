"""Projection heads that objectives put on a trunk."""

from collections.abc import Sequence
from itertools import pairwise

from torch import nn


def projection(dims: Sequence[int], batch_norm: bool) -> nn.Sequential:
    """Linear layers from dims[0] to dims[-1] with (BatchNorm and) ReLU between them.

    With BatchNorm it is SwAV's head ([2048, 2048, 128]); without, SEER's ([width, 8192, 8192, 256]).
    """
    layers: list[nn.Module] = []
    for width, next_width in pairwise(dims[:-1]):
        layers.append(nn.Linear(width, next_width))
        if batch_norm:
            layers.append(nn.BatchNorm1d(next_width))
        layers.append(nn.ReLU(inplace=True))
    return nn.Sequential(*layers, nn.Linear(dims[-2], dims[-1]))
