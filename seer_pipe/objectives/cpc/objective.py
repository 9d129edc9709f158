"""CPC: a patch is found by its prediction among all patches of the batch (van den Oord et al. 2018, arXiv 1807.03748,
section 3.2; version 2, Hénaff et al. 2020, arXiv 1905.09272, appendix A.2).

The trunk's features of the patches of a grid of S x S are mapped to targets t of D numbers. A context c at row r and
column j sees the rows down to r; of each offset k a map W_k predicts the patch k rows below. With T all patches of the
batch, those of the same image among them, over images, columns and the rows that there are::

    loss = mean over k of  mean over r, j of  -log softmax over T ( W_k c[r, j] · t / 10 ) at t[r + k, j]

The products are scaled as in version 2, whose code adds up the means over k.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from seer_pipe.distributed.collectives import all_mean, rank, world_size
from seer_pipe.distributed.gradients import gather_crops
from seer_pipe.objectives.base import Moment, Objective
from seer_pipe.objectives.cpc.network import Predicted
from seer_pipe.objectives.heads import full_precision

SCALE = 0.1


class Cpc(Objective):
    """
    Args:
        side: S, patches in a row.
        offsets: k of each of the predictions.
        gather: T is of all ranks, else of this one.
    """

    def __init__(self, side: int, offsets: Sequence[int], gather: bool) -> None:
        self.side, self.offsets, self.gather = side, list(offsets), gather

    def loss(self, outputs: Predicted, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        with full_precision(outputs.targets):
            targets = _wide(outputs.targets)
            images = len(targets) // self.side**2
            known = gather_crops(targets, images) if self.gather else targets
            ranks, own = (world_size(), rank()) if self.gather else (1, 0)
            losses, found = [], []
            for offset, predicted in zip(self.offsets, outputs.predictions, strict=True):
                products = SCALE * _wide(predicted) @ known.T
                places = own_places(self.side, offset, images, ranks, own, products.device)
                losses.append(F.cross_entropy(products, places))
                if log:
                    found.append((products.detach().argmax(1) == places).to(products.dtype).mean())
            loss = torch.stack(losses).mean()
            return loss, self._metrics(loss.detach(), found) if log else {}

    def _metrics(self, loss: Tensor, found: list[Tensor]) -> dict[str, Tensor]:
        """Over all ranks: the loss; how often the predicted patch is the likeliest, ``pretext_accuracy`` over all
        offsets, ``nearest_row`` and ``farthest_row`` of the least and the greatest."""
        mean_loss, each = all_mean([loss, torch.stack(found)])
        return {
            "loss": mean_loss,
            "pretext_accuracy": each.mean(),
            "nearest_row": each[self.offsets.index(min(self.offsets))],
            "farthest_row": each[self.offsets.index(max(self.offsets))],
        }


def own_places(side: int, offset: int, images: int, ranks: int, own: int, device: torch.device) -> Tensor:
    """Where among the crop-major patches of all ranks the targets of this rank's predictions are, [(S - k) · S · n].

    Args:
        side: S, patches in a row and in a column.
        offset: k, rows from a context down to what it predicts.
        images: n, of each rank.
        ranks, own: how many there are, and which of them this is.
    """
    patches = torch.arange(offset * side, side**2, device=device)
    return (patches[:, None] * (ranks * images) + own * images + torch.arange(images, device=device)).flatten()


def _wide(rows: Tensor) -> Tensor:
    """At least in float32."""
    return rows.to(torch.promote_types(rows.dtype, torch.float32))
