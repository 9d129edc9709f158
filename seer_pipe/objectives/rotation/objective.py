"""Rotation: by which quarter turn was a crop turned (Gidaris et al. 2018, arXiv 1803.07728, section 2).

All four turns of each crop are in the batch, so a step of B images trains on 4 B rows a crop. With logits z of a row
whose turn is t::

    loss = mean over rows of  -log softmax(z)_t
"""

from __future__ import annotations

from torch import Tensor

from seer_pipe.objectives.base import Moment, Objective
from seer_pipe.objectives.pretext import guess


class Rotation(Objective):
    def loss(self, outputs: Tensor, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        assert moment.labels is not None  # the settings ask for turned crops
        return guess(outputs, moment.labels.flatten(), log)
