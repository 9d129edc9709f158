"""NPID: an image finds its own row in a memory bank (Wu et al. 2018, arXiv 1805.01978, section 3).

The bank keeps a unit row m_i of each image i, from its last visits. Of a visit's unit embedding v of image i, and K
rows m_j of images drawn at random, those with no row yet and i itself left out::

    infonce:  -log softmax_0([v · m_i, v · m_j …] / T)                          (He et al. 2020, arXiv 1911.05722)
    nce:      -log h(i, v) - sum over j of log (1 - h(j, v)),                   (equations 4 and 7)
              h(i, v) = P / (P + K / N),  P = exp(v · m_i / T) / Z

averaged over the crops of those images that have a row: an image's first visit only writes one. (Its other crops could
look for what is being written instead. But a fresh row among old ones is found by what time does to a network:
embeddings then drift away from the bank, and fill ever fewer directions.) An image's first crop is written. N images
are in the set. Z is kept as it is for a bank of random directions, N times the mean of exp(cos / T), as Wu et al. took
it from the first batches of theirs. The K images are the same for all rows and ranks, and follow from (seed, images
seen).
"""

from __future__ import annotations

import math
import random

import torch
import torch.nn.functional as F
from torch import Tensor

from seer_pipe.distributed.collectives import all_sum_, world_size
from seer_pipe.objectives.bank import Bank
from seer_pipe.objectives.base import Moment, Objective
from seer_pipe.objectives.heads import unit
from seer_pipe.objectives.metrics import logged
from seer_pipe.objectives.npid.settings import NpidSettings, mean_exponential
from seer_pipe.objectives.settings import Setup


class Npid(Objective):
    def __init__(self, settings: NpidSettings, setup: Setup) -> None:
        self.settings, self._seed, self._crops = settings, setup.seed, setup.views.count
        self.bank = Bank(settings.bank, setup.samples, (settings.head.dim,), setup.device)
        z = setup.samples * mean_exponential(settings.head.dim, settings.temperature)
        self._log_z, self._log_samples = math.log(z), math.log(setup.samples)

    def loss(self, outputs: Tensor, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        z = unit(outputs).unflatten(0, (self._crops, -1))
        visit, drawn = self.bank.visit(moment.samples), self._draw(moment)
        own, others = self.bank.read(visit).to(z.dtype), self.bank.at(drawn.numpy()).to(z.dtype)
        known = own.any(1)
        foreign = (moment.samples[:, None] != drawn).to(z.device, non_blocking=True)
        usable = foreign & others.any(1)  # [n, K]
        positive, negative = (z * own).sum(2), z @ others.T  # [V, n], [V, n, K]
        losses = (self._infonce if self.settings.loss == "infonce" else self._nce)(positive, negative, usable)
        total = all_sum_(known.sum().to(z.dtype)).clamp_min(1)
        loss = (losses.mean(0) * known).sum() * world_size() / total
        self.bank.write(visit, z[0])
        met = (usable & known[:, None]).expand_as(negative)
        return loss, self._metrics(loss, z, positive, negative, met, known) if log else {}

    def state_dict(self) -> dict[str, Tensor]:
        return {"bank": self.bank.logical}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.bank.load(state.get("bank"), "NPID")

    def _draw(self, moment: Moment) -> Tensor:
        """Ids [K], the same on all ranks."""
        generator = torch.Generator().manual_seed(random.Random(f"npid {self._seed} {moment.images}").getrandbits(63))
        return torch.randint(self.bank.samples, (self.settings.negatives,), generator=generator)

    def _infonce(self, positive: Tensor, negative: Tensor, usable: Tensor) -> Tensor:
        cosines = torch.cat([positive[..., None], negative.masked_fill(~usable, -torch.inf)], dim=2)
        return -F.log_softmax(cosines / self.settings.temperature, dim=2)[..., 0]

    def _nce(self, positive: Tensor, negative: Tensor, usable: Tensor) -> Tensor:
        """With the odds o of h, log h = -log(1 + 1/o), and log(1 - h) = -log(1 + o)."""
        share = usable.sum(1).clamp_min(1).to(positive.dtype).log() - self._log_samples  # log K/N
        own = positive / self.settings.temperature - self._log_z - share
        others = negative / self.settings.temperature - self._log_z - share[:, None]
        return F.softplus(-own) + (F.softplus(others) * usable).sum(2)

    @torch.no_grad()
    def _metrics(
        self, loss: Tensor, z: Tensor, positive: Tensor, negative: Tensor, met: Tensor, known: Tensor
    ) -> dict[str, Tensor]:
        """Of the crops that look for their row among others, which they ``met`` [V, n, K]: cosines with their own and
        with those, and how often their own is the nearest. ``remembered``: what share of the batch has a row."""
        nearest = positive >= negative.masked_fill(~met, -torch.inf).amax(2)
        looks = met.any(2)
        sums = torch.stack([
            (positive * looks).sum(), (negative * met).sum(), (nearest * looks).sum().to(z.dtype),
            looks.sum().to(z.dtype), met.sum().to(z.dtype),
        ])  # fmt: skip
        metrics = logged(loss, z, sums=sums, remembered=known.to(z.dtype).mean())
        own, others, found, rows, pairs = metrics.pop("sums").unbind()
        return metrics | {
            "positive_similarity": own / rows.clamp_min(1e-9),
            "negative_similarity": others / pairs.clamp_min(1e-9),
            "top1": found / rows.clamp_min(1e-9),
        }
