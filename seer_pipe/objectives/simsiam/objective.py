"""SimSiam: crops predict the projections of others, which pass no gradient (Chen and He 2021, arXiv 2011.10566).

With predictions p and projections z (equations 1 to 4, for two crops)::

    loss = mean over targets t of  1/(V-1) sum over v != t of  -cos(p_v, z_t)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from seer_pipe.objectives.base import Moment, Objective
from seer_pipe.objectives.heads import Prediction, agreement
from seer_pipe.objectives.metrics import logged


class SimSiam(Objective):
    """For V ``crops``, of which those in ``targets`` are predicted by all others."""

    def __init__(self, crops: int, targets: Sequence[int], *, device: torch.device | str | None = None) -> None:
        self.crops = crops
        self.targets = torch.tensor(targets, device=device)

    def loss(self, outputs: Prediction, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        targets = outputs.projected.unflatten(0, (self.crops, -1)).index_select(0, self.targets).flatten(0, 1)
        loss = -agreement(outputs.predicted, targets, self.crops, self.targets).mean()
        return loss, logged(loss, outputs.projected) if log else {}
