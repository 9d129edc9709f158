"""SimCLR: each crop finds its image's others among all crops of the batch (Chen et al. 2020, arXiv 2002.05709).

NT-Xent, equation 1, for two crops. For V crops of each of B images it is its form with several positives (Khosla et al.
2020, arXiv 2004.11362, equation 2, each image its own class). With unit embeddings z, over all V · B rows i with the
other crops P(i) of their images::

    loss = mean over i of  1/(V-1) sum over p in P(i) of  log( sum over k != i of exp(z_i · z_k / t) ) - z_i · z_p / t

The official code adds the means of the two crops, so its loss is twice this one.
"""

import math

import torch
from torch import Tensor

from seer_pipe.distributed.collectives import rank, world_size
from seer_pipe.distributed.gradients import gather_crops
from seer_pipe.objectives.base import Moment, Objective
from seer_pipe.objectives.heads import full_precision, unit
from seer_pipe.objectives.metrics import logged


class Simclr(Objective):
    """NT-Xent over the global batch.

    Args:
        crops: V, crops of an image.
        temperature: t.
    """

    def __init__(self, crops: int, temperature: float) -> None:
        self.crops = crops
        self.temperature = temperature

    def loss(self, outputs: Tensor, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Of projections [V · n, D] in crop-major rows."""
        with full_precision(outputs):
            z = unit(outputs)
            images = len(z) // self.crops
            positives = _of_image(z.unflatten(0, (self.crops, images)))
            others = z @ gather_crops(z, images).T
            others = others.scatter(1, self._own(images, z.device), -math.inf)  # a crop is none of its own others
            loss = (others / self.temperature).logsumexp(dim=1).mean() - positives.mean() / self.temperature
            return loss, self._metrics(z, others, positives, loss) if log else {}

    def _own(self, images: int, device: torch.device) -> Tensor:
        """The column [V · n, 1] of each row of this rank among the rows of all."""
        crop = torch.arange(self.crops, device=device)[:, None] * world_size() * images
        return (crop + rank() * images + torch.arange(images, device=device)).view(-1, 1)

    @torch.no_grad()
    def _metrics(self, z: Tensor, others: Tensor, positives: Tensor, loss: Tensor) -> dict[str, Tensor]:
        """`positive_similarity` and `negative_similarity`: mean cosines of crops of one image, and of different ones.
        `top1`: share of the crops whose nearest other is of the same image.
        """
        images = len(z) // self.crops
        pairs = others.shape[1] - self.crops  # of a row with crops of other images
        similarity = others.masked_fill(others.isinf(), 0.0).sum(dim=1).mean() - (self.crops - 1) * positives.mean()
        of_rank, own = images * world_size(), self._own(images, z.device).squeeze(1)
        found = others.argmax(dim=1) % of_rank == own % of_rank
        return logged(
            loss,
            z,
            positive_similarity=positives.mean(),
            negative_similarity=similarity / pairs,
            top1=found.double().mean(),
        )


def _of_image(z: Tensor) -> Tensor:
    """Mean similarity [V, n] of each unit row of [V, n, D] to its image's other crops."""
    others = z.sum(dim=0) - z
    return (z * others).sum(dim=2) / (len(z) - 1)
