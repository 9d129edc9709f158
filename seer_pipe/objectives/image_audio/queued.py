"""A picture finds its sound among those of the last steps, and the sound its picture: for small batches.

Momentum copies of both trunks and heads make keys of the sounds and of the pictures' first crops, as MoCo does (He et
al. 2020, arXiv 1911.05722). A ring R keeps the last K of both, those of this step among them. With unit embeddings v
and a of the trained network and keys r, of pictures, and s, of sounds::

    loss = 1/2 mean over i of  -log softmax_i(v_i · s_j / T over j in R)  -log softmax_i(a_i · r_j / T over j in R)

averaged over the crops of a picture. What the trained network itself made of earlier samples could not stand in R: a
fresh row among old ones is found by what time does to a network.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seer_pipe.distributed.collectives import rank
from seer_pipe.objectives.base import Moment
from seer_pipe.objectives.heads import full_precision, unit
from seer_pipe.objectives.image_audio.objective import partners_found
from seer_pipe.objectives.image_audio.settings import ImageAudioSettings
from seer_pipe.objectives.momentum import MomentumObjective, MomentumOutput
from seer_pipe.objectives.pairs import HEARD, SEEN
from seer_pipe.objectives.ring import Ring
from seer_pipe.objectives.settings import Setup


class QueuedImageAudio(MomentumObjective):
    def __init__(self, settings: ImageAudioSettings, setup: Setup) -> None:
        super().__init__(settings.momentum, setup.batch)
        self.temperature = settings.temperature
        drawn = torch.randn(settings.queue, 2, settings.head.dim, generator=torch.Generator().manual_seed(setup.seed))
        self.queue = Ring(F.normalize(drawn, dim=2).to(setup.device))

    def loss(self, outputs: MomentumOutput, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        with full_precision(outputs.online.heard):
            n = len(outputs.online.heard)
            z = unit(torch.cat(outputs.online))
            places = (self.queue.next + rank() * n + torch.arange(n, device=z.device)) % len(self.queue.rows)
            self.queue.push(torch.stack([unit(keys) for keys in outputs.targets], dim=1))
            rows = self.queue.rows.to(z.dtype)
            *pictures, heard = z.unflatten(0, (-1, n))
            to_sounds = [seen @ rows[:, HEARD].T for seen in pictures]
            to_pictures = [heard @ rows[:, SEEN].T]
            ways = [
                F.cross_entropy(torch.cat(cosines) / self.temperature, places.repeat(len(cosines)))
                for cosines in (to_sounds, to_pictures)
            ]
            loss = torch.stack(ways).mean()
            return loss, self.logged(loss, z, moment, **partners_found(to_sounds, to_pictures, places)) if log else {}

    def state_dict(self) -> dict[str, Tensor]:
        return {"queue": self.queue.rows, "next": self.queue.next}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.queue.load(state["queue"], state["next"], "the queue of image_audio", "queue and head")
