"""BYOL: crops predict what momentum copies project others to (Grill et al. 2020, arXiv 2006.07733, equations 1 and 2).

With predictions p and the copies' projections z, both at unit norm::

    loss = sum over targets t of  1/(V-1) sum over v != t of  |p_v - z_t|^2

which is the sum over both directions for two crops, as published. The copies follow after the optimiser.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from seer_pipe.objectives.base import Moment
from seer_pipe.objectives.heads import agreement
from seer_pipe.objectives.momentum import MomentumObjective, MomentumOutput
from seer_pipe.objectives.settings import Momentum


class Byol(MomentumObjective):
    """For V ``crops``, of which those in ``targets`` are predicted by all others, and ``batch`` images a step."""

    def __init__(
        self,
        crops: int,
        targets: Sequence[int],
        momentum: Momentum,
        batch: int,
        *,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(momentum, batch)
        self.crops = crops
        self.targets = torch.tensor(targets, device=device)

    def loss(self, outputs: MomentumOutput, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        alike = agreement(outputs.online.predicted, outputs.targets, self.crops, self.targets)
        loss = (2 - 2 * alike).sum()
        return loss, self.logged(loss, outputs.online.projected, moment) if log else {}
