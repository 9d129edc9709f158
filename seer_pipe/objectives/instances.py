"""Instances: an image finds its own row in a memory, beside those of others (Wu et al. 2018, arXiv 1805.01978).

The memory has a unit row m_i of each image i. Of a unit embedding v of image i, and K rows m_j of others::

    infonce:  -log softmax_0([v · m_i, v · m_j …] / T)                          (He et al. 2020, arXiv 1911.05722)
    nce:      -log h(i, v) - sum over j of log (1 - h(j, v)),                   (Wu et al., equations 4, 7)
              h(i, v) = P / (P + K / N),  P = exp(v · m_i / T) / Z

weighted over an image's embeddings, and averaged over the images that have a row. N images are in the set. Z is kept as
it is for a bank of random directions, N times the mean of exp(cos / T), as Wu et al. took it from the first batches of
theirs. Of a bank the K images are drawn, those with no row yet and i itself left out: the same for all rows and ranks,
and from (seed, images seen).
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from seer_pipe.distributed.collectives import all_sum_, world_size
from seer_pipe.objectives.base import Moment, Objective
from seer_pipe.objectives.instance_settings import InstanceSettings, mean_exponential
from seer_pipe.objectives.memory import Memory
from seer_pipe.objectives.metrics import logged
from seer_pipe.objectives.settings import Setup


class Others(NamedTuple):
    """Of a step, on all ranks alike."""

    drawn: Tensor  # ids [K], on the host; of a ring they say nothing
    rows: Tensor  # [K, ..]
    usable: Tensor  # which of them each image of this rank is told from, [n, K]


class Instances(Objective):
    """``weights``: of the losses of an image's embeddings. Implementations bring these."""

    def __init__(self, settings: InstanceSettings, setup: Setup, memory: Memory, weights: Sequence[float]) -> None:
        self.settings, self._seed, self._samples = settings, setup.seed, setup.samples
        self.memory, self._weights = memory, list(weights)
        z = setup.samples * mean_exponential(settings.numbers, settings.temperature)
        self._log_z, self._log_samples = math.log(z), math.log(setup.samples)

    def embedded(self, outputs: Any) -> tuple[Tensor, Tensor]:
        """Unit embeddings [V, n, D] that look for their images' rows, and those [n, ..] that are remembered."""
        raise NotImplementedError

    def cosines(self, z: Tensor, own: Tensor, others: Tensor) -> tuple[Tensor, Tensor]:
        """Of the V embeddings of an image with its own row of the memory [n, ..], and those of others [K, ..]: [V, n],
        [V, n, K]."""
        return (z * own).sum(2), z @ others.T

    def costs(self, z: Tensor, own: Tensor, others: Others, moment: Moment) -> tuple[Tensor, Tensor, Tensor]:
        """The loss of each image [n], and the `cosines` that it is of."""
        positive, negative = self.cosines(z, own, others.rows)
        losses = self.scored(positive[..., None], negative, others.usable)[..., 0]
        return losses.T @ self.weights(z), positive, negative

    def weights(self, like: Tensor) -> Tensor:
        """[V]"""
        return like.new_tensor(self._weights)

    def scored(self, positive: Tensor, negative: Tensor, usable: Tensor) -> Tensor:
        """The loss [V, n, P] of cosines with each of P rows that are to be found [V, n, P], among others [V, n, K]."""
        return (self._infonce if self.settings.loss == "infonce" else self._nce)(positive, negative, usable)

    def loss(self, outputs: Any, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        z, fresh = self.embedded(outputs)
        own = self.memory.recall(moment.samples, fresh.detach())
        drawn = self._draw(moment)
        rows, usable = self.memory.others(moment.samples, drawn)
        known = own.flatten(1).any(1)
        losses, positive, negative = self.costs(z, own, Others(drawn, rows.to(z.dtype), usable), moment)
        total = all_sum_(known.sum().to(z.dtype)).clamp_min(1)
        loss = (losses * known).sum() * world_size() / total
        self.memory.remember(fresh.detach())
        met = (usable & known[:, None]).expand_as(negative)
        return loss, self._metrics(loss, z, positive, negative, met, known) if log else {}

    def state_dict(self) -> dict[str, Tensor]:
        return self.memory.state_dict()

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.memory.load_state_dict(state, self.settings.name)

    def _draw(self, moment: Moment) -> Tensor:
        """Ids [K], the same on all ranks."""
        generator = torch.Generator().manual_seed(random.Random(f"npid {self._seed} {moment.images}").getrandbits(63))
        return torch.randint(self._samples, (self.settings.negatives,), generator=generator)

    def _infonce(self, positive: Tensor, negative: Tensor, usable: Tensor) -> Tensor:
        """-log(e^p / (e^p + sum e^n)) = log(1 + e^(log sum e^n - p))."""
        others = (negative / self.settings.temperature).masked_fill(~usable, -torch.inf)
        return F.softplus(others.logsumexp(2, keepdim=True) - positive / self.settings.temperature)

    def _nce(self, positive: Tensor, negative: Tensor, usable: Tensor) -> Tensor:
        """With the odds o of h, log h = -log(1 + 1/o), and log(1 - h) = -log(1 + o)."""
        noise = usable.sum(1, keepdim=True).clamp_min(1).to(positive.dtype).log() - self._log_samples  # log K/N
        own = positive / self.settings.temperature - self._log_z - noise
        others = negative / self.settings.temperature - self._log_z - noise
        return F.softplus(-own) + (F.softplus(others) * usable).sum(2, keepdim=True)

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
