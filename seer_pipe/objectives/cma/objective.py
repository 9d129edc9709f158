"""CMA: AVID, and samples near those that pictures and sounds agree to be near (Morgado et al. 2021, arXiv 2004.12943,
section 4).

At a refresh the positives C_i of sample i are the P others in the bank with the greatest min(s_i · s_j, h_i · h_j), of
the rows s of pictures and h of sounds. With the loss L of `instances`, whose others are now neither i nor in C_i::

    loss = 1/2 AVID's  +  1/2 mean over j in C_i of  [ 1/2 L(picture; s_j)  +  1/2 L(sound; h_j) ]

The second half is within a modality, among the first `within_negatives` of the others. Until the first refresh, and for
a sample that had no rows then, the loss is AVID's.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seer_pipe.objectives.avid.objective import Avid
from seer_pipe.objectives.base import Moment, take_saved
from seer_pipe.objectives.cma.consensus import agreed
from seer_pipe.objectives.cma.settings import CmaSettings
from seer_pipe.objectives.instances import Others
from seer_pipe.objectives.pairs import HEARD, SEEN
from seer_pipe.objectives.settings import Setup


class Positives:
    """Ids [N, P] int32, nearest first, -1 for none; on the host, alike on all ranks. They are here and not among the
    objective's own tensors since no step changes them, so none has to keep a copy."""

    def __init__(self, samples: int, positives: int) -> None:
        self.ids = torch.full((samples, positives), -1, dtype=torch.int32)


class Cma(Avid):
    settings: CmaSettings

    def __init__(self, settings: CmaSettings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.refresh_images = settings.refresh_images
        self.positives = Positives(setup.samples, settings.positives)
        self.consensus = torch.zeros((), device=setup.device)  # at the last refresh

    def costs(self, z: Tensor, own: Tensor, others: Others, moment: Moment) -> tuple[Tensor, Tensor, Tensor]:
        ids = self.positives.ids[moment.samples].long()
        there = ids >= 0
        asked = torch.where(there, ids, moment.samples[:, None])  # of any other one that is there for certain
        near = self.memory.read(self.memory.visit(asked.flatten())).unflatten(0, ids.shape).to(z.dtype)  # [n, P, 2, D]
        ids, there = (some.to(z.device, non_blocking=True) for some in (ids, there))
        drawn, usable = others.drawn.to(z.device, non_blocking=True), others.usable
        for one in ids.unbind(1):
            usable = usable & (one[:, None] != drawn)
        losses, positive, negative = super().costs(z, own, others._replace(usable=usable), moment)
        few = self.settings.within_negatives
        to_near, to_far = self._within(z, near, others.rows[:few])
        found = self.scored(to_near, to_far, usable[:, :few]) * there
        many = there.sum(1)
        within = (found.sum(2) / many.clamp_min(1)).T @ self.weights(z)
        return torch.where(many > 0, (losses + within) / 2, losses), positive, negative

    def _within(self, z: Tensor, near: Tensor, far: Tensor) -> tuple[Tensor, Tensor]:
        """Cosines of the V embeddings with rows of their own modality: [V, n, P], [V, n, K]."""
        *seen, heard = z.unbind()
        looked = [*[(v, SEEN) for v in seen], (heard, HEARD)]
        to_near = torch.stack([(near[:, :, row] @ v[..., None])[..., 0] for v, row in looked])
        return to_near, torch.stack([v @ far[:, row].T for v, row in looked])

    def refresh(self, number: int, moment: Moment) -> None:
        self.positives.ids, consensus = agreed(self.memory, self.settings.positives)
        self.consensus = consensus.to(self.consensus)

    def _metrics(self, *found: Tensor) -> dict[str, Tensor]:
        """Besides AVID's ``consensus``: of all samples with their positives at the last refresh, the mean of the lesser
        cosine."""
        return super()._metrics(*found) | {"consensus": self.consensus}

    def state_dict(self) -> dict[str, Tensor]:
        return super().state_dict() | {"positives": self.positives.ids, "consensus": self.consensus}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        super().load_state_dict(state)
        take_saved(self.positives.ids, state["positives"], "the positives of CMA", "shard set and positives")
        take_saved(self.consensus, state["consensus"], "the consensus of CMA", "settings")
