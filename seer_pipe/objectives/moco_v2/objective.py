"""MoCo v2: a crop finds its image's key among those of earlier steps (He et al. 2020, arXiv 1911.05722, equation 1).

With queries q of the trained network, keys k of its momentum copies and those of earlier steps in a queue Q, all at
unit norm::

    loss = mean over targets t, crops v != t of  -log softmax_0([q_v · k_t, q_v · Q] / T)

The copies follow after the optimiser. He et al. let them follow before the keys, which are the same weights.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from seer_pipe.objectives.base import Moment
from seer_pipe.objectives.heads import unit
from seer_pipe.objectives.metrics import retrieval, retrieved
from seer_pipe.objectives.momentum import MomentumObjective, MomentumOutput
from seer_pipe.objectives.ring import Ring
from seer_pipe.objectives.settings import Momentum


class MocoV2(MomentumObjective):
    """For V ``crops``, of which those in ``targets`` give keys, and ``batch`` images a step.

    Args:
        queue, dim: K keys of D numbers, at first random ones that come from ``seed``.
        temperature: T.
        device: where the queue lives.
    """

    def __init__(
        self,
        crops: int,
        targets: Sequence[int],
        momentum: Momentum,
        batch: int,
        *,
        queue: int,
        dim: int,
        temperature: float,
        seed: int,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(momentum, batch)
        seen = [crop for crop in range(crops) if [crop] != list(targets)]
        self.queries = [[place for place, crop in enumerate(seen) if crop != target] for target in targets]
        self._crops, self.temperature = len(seen), temperature
        self.queue = Ring(unit(torch.randn(queue, dim, generator=torch.Generator().manual_seed(seed))).to(device))

    def loss(self, outputs: MomentumOutput, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        queries = unit(outputs.online).unflatten(0, (self._crops, -1))
        keys = unit(outputs.targets).unflatten(0, (len(self.queries), -1))
        losses, found = [], []
        for key, others in zip(keys, self.queries, strict=True):
            rows = torch.cat([queries[other] for other in others])
            own = (rows * key.repeat(len(others), 1)).sum(1, keepdim=True)
            cosines = torch.cat([own, rows @ self.queue.rows.to(rows.dtype).T], dim=1)
            places = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
            losses.append(F.cross_entropy(cosines / self.temperature, places))
            if log:
                found.append(retrieval(cosines, places))
        self.queue.push(keys.transpose(0, 1).flatten(0, 1))
        loss = torch.stack(losses).mean()
        return loss, self.logged(loss, queries, moment, **retrieved(found)) if log else {}

    def state_dict(self) -> dict[str, Tensor]:
        return {"queue": self.queue.rows, "next": self.queue.next}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.queue.load(state["queue"], state["next"], "MoCo's queue", "queue and head")
