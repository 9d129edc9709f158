"""A patch is nearer to itself some frames later than to others (Wang and Gupta 2015, arXiv 1505.00687, section 4).

With unit embeddings q of the first and p of the last pictures of B tracks, and K others n of each, which are pictures
of other tracks of the global batch::

    loss = mean over tracks and their others of  max(0, D(q, p) - D(q, n) + margin),     D(a, b) = 1 - a · b

Until so many images were seen the others are drawn: K places of the batch, each so many rows on from a track's own, so
that all of them are drawn as often. What is drawn follows from (seed, images seen). Then they are the K nearest, which
have the greatest loss ("hard negative mining"). The paper sums over tracks, and has weight decay in the loss.
"""

from __future__ import annotations

import random

import torch
from torch import Tensor

from seer_pipe.distributed.collectives import rank
from seer_pipe.distributed.gradients import gather_crops
from seer_pipe.objectives.base import Moment, Objective
from seer_pipe.objectives.heads import full_precision, unit
from seer_pipe.objectives.metrics import logged, retrieval, retrieved
from seer_pipe.objectives.tracking.settings import TrackingSettings


class Tracking(Objective):
    """``seed``: of what is drawn."""

    def __init__(self, settings: TrackingSettings, seed: int) -> None:
        self.settings, self._seed = settings, seed

    def loss(self, outputs: Tensor, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Of embeddings [2 · n, D], the first pictures' before the last ones'."""
        with full_precision(outputs):
            z = unit(outputs)
            n = len(z) // 2
            first, last = z.unflatten(0, (2, n))
            cosines = first @ gather_crops(z, n).T  # [n, 2 · B]
            own = rank() * n + torch.arange(n, device=z.device)
            others = self._others(cosines.detach(), own, moment)
            ahead = (first * last).sum(1, keepdim=True) - cosines.gather(1, others)
            losses = (self.settings.margin - ahead).relu()
            loss = losses.mean()
            return loss, self._metrics(loss, z, cosines, own, losses) if log else {}

    def _others(self, cosines: Tensor, own: Tensor, moment: Moment) -> Tensor:
        """The columns [n, K] of ``cosines`` that each of the rows ``own`` [n] of the batch is ranked before."""
        batch, count = cosines.shape[1] // 2, self.settings.negatives
        if moment.images >= self.settings.hard_after:
            pair = torch.stack([own, own + batch], dim=1)
            return cosines.scatter(1, pair, -torch.inf).topk(count, dim=1).indices
        drawn = random.Random(f"tracking {self._seed} {moment.images}").sample(range(2 * (batch - 1)), count)
        places = (divmod(place, batch - 1) for place in drawn)
        return torch.stack([picture * batch + (own + 1 + rows) % batch for picture, rows in places], dim=1)

    @torch.no_grad()
    def _metrics(self, loss: Tensor, z: Tensor, cosines: Tensor, own: Tensor, losses: Tensor) -> dict[str, Tensor]:
        """`positive_similarity` and `negative_similarity`: mean cosines of a first picture with the last one of its
        track, and of others. `top1`: how often the own one is the nearest of these. `misranked`: triplets with a loss.
        """
        found = retrieved([retrieval(cosines[:, cosines.shape[1] // 2 :], own)])
        return logged(loss, z, **found, misranked=(losses > 0).to(z.dtype).mean())
