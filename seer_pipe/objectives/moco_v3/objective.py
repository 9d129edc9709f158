"""MoCo v3: a crop's prediction finds its image's key in the batch (Chen, Xie and He 2021, arXiv 2104.02057).

With predictions q and the momentum copies' projections k of the global batch, both at unit norm (algorithm 1)::

    loss = sum over targets t of  1/(V-1) sum over v != t of  2 T · (-log softmax_i(q_v · k_t / T)),  i the own image

The copies follow after the optimiser; there, before the keys, one step later on the cosine.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from seer_pipe.distributed.collectives import all_gather_rows, rank
from seer_pipe.objectives.base import Moment
from seer_pipe.objectives.heads import unit
from seer_pipe.objectives.metrics import retrieval, retrieved
from seer_pipe.objectives.momentum import MomentumObjective, MomentumOutput
from seer_pipe.objectives.settings import Momentum


class MocoV3(MomentumObjective):
    """For V ``crops``, of which those in ``targets`` give keys, ``batch`` images a step, and T the ``temperature``."""

    def __init__(self, crops: int, targets: Sequence[int], momentum: Momentum, batch: int, temperature: float) -> None:
        super().__init__(momentum, batch)
        self.crops, self.targets, self.temperature = crops, list(targets), temperature

    def loss(self, outputs: MomentumOutput, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        queries = unit(outputs.online.predicted).unflatten(0, (self.crops, -1))
        own = unit(outputs.targets).unflatten(0, (len(self.targets), -1)).transpose(0, 1)
        keys = all_gather_rows(own).transpose(0, 1)  # [A, B, D]: nothing passes a gradient
        images = queries.shape[1]
        places = (rank() * images + torch.arange(images, device=keys.device)).repeat(self.crops - 1)
        loss, found = queries.new_zeros(()), []
        for key, target in zip(keys, self.targets, strict=True):
            cosines = torch.cat([rows for crop, rows in enumerate(queries) if crop != target]) @ key.T
            loss = loss + 2 * self.temperature * F.cross_entropy(cosines / self.temperature, places)
            if log:
                found.append(retrieval(cosines, places))
        return loss, self.logged(loss, outputs.online.projected, moment, **retrieved(found)) if log else {}
