"""Metrics that several objectives log: whether embeddings fill their space."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from seer_pipe.distributed.collectives import all_mean
from seer_pipe.objectives.heads import unit

WIDEST = 1024  # dimensions that are looked at: the cost of a rank grows with the cube of their number


def directions(z: Tensor) -> Tensor:
    """Embeddings [..., D] of any length as unit rows [n, D], of their first dimensions where there are very many."""
    return unit(z.flatten(0, -2)[:, :WIDEST])


def moments(z: Tensor) -> list[Tensor]:
    """Mean [D] and second moment [D, D] of this rank's unit embeddings [n, D], float64: to be averaged over ranks."""
    wide = z.double()  # in float32 the rounding of the moments alone would count as dimensions
    return [wide.mean(0), wide.T @ wide / len(z)]


def spread(mean: Tensor, moment: Tensor) -> dict[str, Tensor]:
    """Of the moments of unit embeddings over all ranks:

    - ``embedding_std`` times sqrt(D): 1 when spread over the sphere, 0 when all embeddings are one.
    - ``effective_rank`` (RankMe, Garrido et al. 2023), 1 to D.
    """
    deviation = (moment.diagonal() - mean.square()).clamp_min(0).sqrt()
    singular = torch.linalg.eigvalsh(moment.nan_to_num()).clamp_min(0).sqrt()
    return {
        "embedding_std": deviation.mean() * math.sqrt(len(mean)),
        "effective_rank": entropy(singular / singular.sum()).exp(),
    }


@torch.no_grad()
def logged(loss: Tensor, embeddings: Tensor, **means: Tensor) -> dict[str, Tensor]:
    """What a step logs, over all ranks: the loss, `spread` of ``embeddings`` [..., D], and means of any shape."""
    values = [value.double() for value in (loss, *moments(directions(embeddings)), *means.values())]
    mean_loss, mean, moment, *others = all_mean(values)
    metrics = {"loss": mean_loss, **spread(mean, moment), **dict(zip(means, others, strict=True))}
    return {name: value.float() for name, value in metrics.items()}


@torch.no_grad()
def retrieval(cosines: Tensor, places: Tensor) -> Tensor:
    """Of cosines [m, K] of queries with keys, their own in the columns ``places`` [m]: the mean with the own key, that
    with the others, and how often the own is the nearest, [3]."""
    own = cosines.gather(1, places[:, None])
    others = (cosines.sum() - own.sum()) / (cosines.numel() - own.numel())
    return torch.stack([own.mean(), others, (cosines.argmax(1) == places).to(own.dtype).mean()])


def retrieved(found: Sequence[Tensor]) -> dict[str, Tensor]:
    """The means of several `retrieval`, by the names that they are logged under."""
    own, others, nearest = torch.stack(list(found)).mean(0)
    return {"positive_similarity": own, "negative_similarity": others, "top1": nearest}


def entropy(p: Tensor) -> Tensor:
    """Entropy over the last dimension, in nats."""
    return torch.special.entr(p).sum(dim=-1)
