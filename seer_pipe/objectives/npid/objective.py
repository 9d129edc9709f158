"""NPID: an image finds its own row in a memory bank (Wu et al. 2018, arXiv 1805.01978, section 3).

The bank keeps a unit row of each image, from its last visits; the loss is that of `instances`, the mean over all crops
of the images that have a row: an image's first visit only writes one. (Its other crops could look for what is being
written instead. But a fresh row among old ones is found by what time does to a network: embeddings then drift away from
the bank, and fill ever fewer directions.) An image's first crop is written.
"""

from __future__ import annotations

from torch import Tensor

from seer_pipe.objectives.bank import Bank
from seer_pipe.objectives.heads import unit
from seer_pipe.objectives.instances import Instances
from seer_pipe.objectives.npid.settings import NpidSettings
from seer_pipe.objectives.settings import Setup


class Npid(Instances):
    def __init__(self, settings: NpidSettings, setup: Setup) -> None:
        bank, crops = Bank(settings.bank, setup.samples, (settings.numbers,), setup.device), setup.views.count
        super().__init__(settings, setup, bank, [1 / crops] * crops)

    def embedded(self, outputs: Tensor) -> tuple[Tensor, Tensor]:
        z = unit(outputs).unflatten(0, (len(self._weights), -1))
        return z, z[0]
