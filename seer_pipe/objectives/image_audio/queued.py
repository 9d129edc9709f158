"""A picture finds its sound among those of the last steps, and the sound its picture: for small batches.

Momentum copies of both trunks and heads make keys of the sounds and of the pictures' first crops, as MoCo does (He et
al. 2020, arXiv 1911.05722). A ring R keeps the last K of both, those of this step among them. With unit embeddings v
and a of the trained network and keys r, of pictures, and s, of sounds::

    loss = 1/2 mean over i of  -log softmax_i(v_i · s_j / T over j in R)  -log softmax_i(a_i · r_j / T over j in R)

averaged over the crops of a picture. What the trained network itself made of earlier samples could not stand in R: a
fresh row among old ones is found by what time does to a network.

With positives it is CMA (Morgado et al. 2021, arXiv 2004.12943, section 4) on a stream: C_i are the P samples in R,
other than i, with the greatest min(r_i · r_j, s_i · s_j). They are left out of the softmax above, and with L(x; y_j) =
-log of the share of exp(x · y_j / T) among it and those of all that are neither i nor in C_i::

    loss = 1/2 the one above  +  1/2 mean over i and j in C_i of  [ 1/2 L(v_i; r_j)  +  1/2 L(a_i; s_j) ]
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

#: Cosines [n, K] of the crops of pictures with rows, of each crop, and of the sounds.
Ways = tuple[list[Tensor], list[Tensor]]


@torch.no_grad()
def agreed(keys: Tensor, rows: Tensor, places: Tensor, positives: int) -> tuple[Tensor, Tensor]:
    """Of samples with keys [n, 2, D], of picture and sound, that stand at ``places`` [n] of rows [K, 2, D]: the places
    [n, P] of the P others that are nearest in both, and the mean of the lesser cosines, []."""
    near = torch.minimum(*(keys[:, one] @ rows[:, one].T for one in (SEEN, HEARD)))
    cosines, found = near.scatter(1, places[:, None], -torch.inf).topk(positives, dim=1)
    return found, cosines.mean()


class QueuedImageAudio(MomentumObjective):
    def __init__(self, settings: ImageAudioSettings, setup: Setup) -> None:
        super().__init__(settings.momentum, setup.batch)
        self.temperature, self.positives = settings.temperature, settings.positives
        self.positives_from = max(settings.positives_after, settings.queue)  # random rows are nobody's
        drawn = torch.randn(settings.queue, 2, settings.head.dim, generator=torch.Generator().manual_seed(setup.seed))
        self.queue = Ring(F.normalize(drawn, dim=2).to(setup.device))

    def loss(self, outputs: MomentumOutput, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        with full_precision(outputs.online.heard):
            n = len(outputs.online.heard)
            z = unit(torch.cat(outputs.online))
            places = (self.queue.next + rank() * n + torch.arange(n, device=z.device)) % len(self.queue.rows)
            keys = torch.stack([unit(keys) for keys in outputs.targets], dim=1)
            self.queue.push(keys)
            rows = self.queue.rows.to(z.dtype)
            *pictures, heard = z.unflatten(0, (-1, n))
            to_sounds = [seen @ rows[:, HEARD].T for seen in pictures]
            to_pictures = [heard @ rows[:, SEEN].T]
            across, more = (to_sounds, to_pictures), {}
            if self.positives and moment.images >= self.positives_from:
                near, more["consensus"] = agreed(keys, rows, places, self.positives)
                within = [seen @ rows[:, SEEN].T for seen in pictures], [heard @ rows[:, HEARD].T]
                loss = (self._across(across, places, near) + self._within(within, places, near)) / 2
            else:
                loss = self._across(across, places, None)
            if not log:
                return loss, {}
            return loss, self.logged(loss, z, moment, **partners_found(*across, places), **more)

    def _across(self, ways: Ways, places: Tensor, near: Tensor | None) -> Tensor:
        """Each crop's own row of the other modality, among all but those at ``near`` [n, P]."""
        losses = []
        for cosines in ways:
            scores = torch.stack(cosines) / self.temperature
            if near is not None:
                scores = scores.scatter(2, near.expand(len(cosines), -1, -1), -torch.inf)
            losses.append(F.cross_entropy(scores.flatten(0, 1), places.repeat(len(cosines))))
        return torch.stack(losses).mean()

    def _within(self, ways: Ways, places: Tensor, near: Tensor) -> Tensor:
        """Each row at ``near`` of a crop's own modality, among it and all but these and the own one."""
        losses = []
        for cosines in ways:
            scores, there = torch.stack(cosines) / self.temperature, near.expand(len(cosines), -1, -1)
            known = torch.cat([near, places[:, None]], dim=1).expand(len(cosines), -1, -1)
            far = scores.scatter(2, known, -torch.inf).logsumexp(2, keepdim=True)
            found = scores.gather(2, there)
            losses.append((torch.logaddexp(found, far) - found).mean())
        return torch.stack(losses).mean()

    def state_dict(self) -> dict[str, Tensor]:
        return {"queue": self.queue.rows, "next": self.queue.next}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.queue.load(state["queue"], state["next"], "the queue of image_audio", "queue and head")
