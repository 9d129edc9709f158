"""Statistics of the columns of embeddings, crop by crop, over the global batch, for losses against redundancy."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from seer_pipe.distributed.collectives import world_size
from seer_pipe.distributed.gradients import gather_crops, mean_and_variance, second_moment
from seer_pipe.objectives.column_settings import by_rows


def by_crop(rows: Tensor, crops: int) -> Tensor:
    """Rows [V · n, D] in crop-major order as [V, n, D], at least float32."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32)).unflatten(0, (crops, -1))


def centred(z: Tensor) -> tuple[Tensor, Tensor]:
    """This rank's z [V, n, D] less the mean of each crop's columns over all ranks, and their biased variance [V, D]."""
    mean, variance = mean_and_variance(z.transpose(0, 1).flatten(1))  # all crops in one collective
    return z - mean.view(len(z), 1, -1), variance.view(len(z), -1)


def squared_moments(z: Tensor, pairs: Sequence[tuple[int, int]]) -> Tensor:
    """Of each pair of crops (a, v) the sum of squares of M = X'Y / B, [D, D], with all B rows X of a and Y of v.

    It is reached in two ways, both exact: by M, which the ranks sum, or as the sum of (XX') * (YY') / B², for which
    rows are gathered and each rank has the products of its own. The one that sends and computes less is taken.

    Args:
        z: [V, n, D], this rank's.

    Returns:
        [P], to be averaged over ranks.
    """
    crops, images, dim = z.shape
    ranks = world_size()
    if not by_rows(crops, len(pairs), dim, images * ranks):
        return torch.stack([second_moment(z[a], z[v]).square().sum() for a, v in pairs])
    everyone = gather_crops(z.flatten(0, 1), images).unflatten(0, (crops, -1))
    products = z @ everyone.transpose(1, 2)  # [V, n, B]
    return torch.stack([(products[a] * products[v]).sum() for a, v in pairs]) / (images**2 * ranks)
