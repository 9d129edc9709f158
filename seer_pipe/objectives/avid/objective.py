"""AVID: a picture finds its sound's row in a memory bank, and the sound its picture's (Morgado et al. 2021, arXiv
2004.12943, section 3).

The bank keeps two unit rows of each sample, of its picture and of its sound, from its last visits. With the loss L of
`instances`, where both ways have the same K other samples, and the V crops of a picture::

    loss = 1/2 mean over crops of L(picture; rows of sounds)  +  1/2 L(sound; rows of pictures)

A sample's first visit only writes its rows; a picture's first crop is written.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seer_pipe.objectives.bank import Bank
from seer_pipe.objectives.heads import unit
from seer_pipe.objectives.instances import Instances
from seer_pipe.objectives.pair_settings import PairBankSettings
from seer_pipe.objectives.pairs import HEARD, SEEN, Pair
from seer_pipe.objectives.settings import Setup


class Avid(Instances):
    memory: Bank

    def __init__(self, settings: PairBankSettings, setup: Setup) -> None:
        bank = Bank(settings.bank, setup.samples, (settings.rows, settings.numbers), setup.device)
        crops = setup.views.count
        super().__init__(settings, setup, bank, [*[0.5 / crops] * crops, 0.5])

    def embedded(self, outputs: Pair) -> tuple[Tensor, Tensor]:
        z = unit(torch.cat(outputs)).unflatten(0, (len(self._weights), -1))
        return z, torch.stack([z[0], z[-1]], dim=1)

    def cosines(self, z: Tensor, own: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        *seen, heard = z.unbind()
        looked = [*[(v, HEARD) for v in seen], (heard, SEEN)]
        positive = torch.stack([(v * own[:, row]).sum(1) for v, row in looked])
        return positive, torch.stack([v @ others[:, row].T for v, row in looked])
