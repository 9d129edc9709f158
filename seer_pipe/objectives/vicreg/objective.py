"""VICReg: crops of an image are alike, each dimension varies, and no two vary together (Bardes et al. 2022, arXiv
2105.04906, section 4.1).

With embeddings z of V crops, which are not normalised, and variance and covariance over the batch (by B - 1)::

    loss = invariance · mean over pairs (a, v) of mean (z_a - z_v)²
         + variance   · mean over crops v and dimensions d of max(0, 1 - sqrt(var_vd + 0.0001))
         + covariance · 2 · mean over crops v of 1/D sum_{i != j} cov_vij²

For two crops there is the paper's one pair, and the last term is the sum over both. Of more crops, those with an anchor
(a large crop) are paired, each once. The official code halves the variance terms of the two crops, as here.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from seer_pipe.distributed.collectives import world_size
from seer_pipe.objectives.base import Moment, Objective
from seer_pipe.objectives.columns import by_crop, centred, squared_moments
from seer_pipe.objectives.heads import full_precision
from seer_pipe.objectives.metrics import logged
from seer_pipe.objectives.vicreg.settings import EPS, VicregSettings


class Vicreg(Objective):
    """The loss over the global batch, with ``weights``, of ``crops`` of an image."""

    def __init__(self, weights: VicregSettings, crops: int) -> None:
        self.weights = weights
        self.crops = crops
        self.pairs, self.own = weights.pairs(crops), weights.moments(crops)

    def loss(self, outputs: Tensor, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Of projections [V · n, D] in crop-major rows."""
        with full_precision(outputs):
            z = by_crop(outputs, self.crops)
            rows, variance = centred(z)
            batch = z.shape[1] * world_size()
            unbiased = batch / (batch - 1)
            variance = variance * unbiased
            distance = torch.stack([F.mse_loss(z[a], z[v]) for a, v in self.pairs]).mean()
            hinge = (1 - (variance + EPS).sqrt()).relu().mean()
            squares = squared_moments(rows, self.own) * unbiased**2
            redundancy = (squares - variance.square().sum(1)).mean() / z.shape[2]
            weights = self.weights
            loss = weights.invariance * distance + weights.variance * hinge + 2 * weights.covariance * redundancy
            if not log:
                return loss, {}
            # the terms without weights, of one crop or pair
            return loss, logged(loss, rows, distance=distance, hinge=hinge, redundancy=redundancy)
