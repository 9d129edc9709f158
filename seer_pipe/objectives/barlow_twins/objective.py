"""Barlow Twins: the cross-correlation of two crops' embeddings is to be the identity (Zbontar et al. 2021, arXiv
2103.03230, equations 1 and 2).

With columns standardised over the batch, crop by crop, and c = mean over images of z_a z_v'::

    loss = mean over pairs (a, v) of  sum_i (1 - c_ii)² + lambda · sum_i sum_{j != i} c_ij²

For two crops there is the paper's one pair; of more, those with an anchor (a large crop) are paired, each once, for the
c of (v, a) is the transposed. Statistics and c are those of the global batch, with their gradient. (The official code's
gradient is too small by the number of ranks.)
"""

import torch
from torch import Tensor

from seer_pipe.distributed.collectives import world_size
from seer_pipe.distributed.gradients import sum_ranks
from seer_pipe.objectives.base import Moment, Objective
from seer_pipe.objectives.column_settings import Pairs
from seer_pipe.objectives.columns import by_crop, centred, squared_moments
from seer_pipe.objectives.heads import full_precision
from seer_pipe.objectives.metrics import logged

EPS = 1e-5  # added to variances, as torch's BatchNorm does


class BarlowTwins(Objective):
    """The loss over the global batch.

    Args:
        crops: V, crops of an image.
        pairs: of crops that are compared.
        off_diagonal: lambda.
    """

    def __init__(self, crops: int, pairs: Pairs, off_diagonal: float) -> None:
        self.crops = crops
        self.pairs = pairs
        self.off_diagonal = off_diagonal

    def loss(self, outputs: Tensor, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Of projections [V · n, D] in crop-major rows."""
        with full_precision(outputs):
            z, variance = centred(by_crop(outputs, self.crops))
            z = z * (variance + EPS).rsqrt()[:, None]
            sums = torch.stack([(z[a] * z[v]).sum(0) for a, v in self.pairs])
            diagonal = sum_ranks(sums, same=True) / (z.shape[1] * world_size())  # [P, D]
            off = squared_moments(z, self.pairs) - diagonal.square().sum(1)
            loss = ((1 - diagonal).square().sum(1) + self.off_diagonal * off).mean()
            return loss, self._metrics(z, diagonal, off, loss) if log else {}

    @torch.no_grad()
    def _metrics(self, z: Tensor, diagonal: Tensor, off: Tensor, loss: Tensor) -> dict[str, Tensor]:
        """`on_diagonal`: mean of c_ii. `off_diagonal`: root mean square of c_ij."""
        dim = z.shape[2]
        metrics = logged(loss, z, on_diagonal=diagonal.mean(), off_diagonal=off.mean() / (dim * max(1, dim - 1)))
        return metrics | {"off_diagonal": metrics["off_diagonal"].clamp_min(0).sqrt()}
