"""A walk over the patches of a clip, there and back in time, ends where it began (Jabri, Owens and Efros 2020,
arXiv 2006.14613, section 2).

With unit embeddings q_t, [N, D], of the N patches of frame t of T, and steps that follow likeness::

    A_t = softmax(q_t · q_(t+1)ᵀ / temperature),     B_t = softmax(q_(t+1) · q_tᵀ / temperature)     over each row,
    R_k = A_1 · … · A_k · B_k · … · B_1,
    loss = mean over k = 2 … T - 1, clips and patches i of  -log(R_k[i, i] + 1e-20)

Rows of R_k add up to one, so this is the cross entropy of the published code (ajabri/videowalk), which normalises them
again. R_1 counts neither there nor here.

Edges are dropped: each step's cosine, with a probability, is -1e20 before the softmax, so that no patch relies on one
successor. Which ones follows from (seed, number of the clip in the run). The published code writes them into the
cosines of the way out, of which the way back is a view: that one lacks these edges and others of its own, nearly twice
as many. Here both ways are drawn alike, each on its own. There the metrics are of walks that lack edges, here of whole
ones.
"""

from __future__ import annotations

import torch
from torch import Tensor

from seer_pipe.distributed.collectives import rank
from seer_pipe.objectives.base import Moment, Objective
from seer_pipe.objectives.heads import full_precision, unit
from seer_pipe.objectives.metrics import logged
from seer_pipe.objectives.random_walk.edges import dropped
from seer_pipe.objectives.random_walk.settings import RandomWalkSettings

LEAST, NEVER = 1e-20, -1e20  # beside a probability, for its logarithm; the cosine of an edge that is dropped


class RandomWalk(Objective):
    """
    Args:
        frames: T, 3 or more.
        patches: N of each.
        seed: of the edges that are dropped.
    """

    def __init__(self, settings: RandomWalkSettings, frames: int, patches: int, seed: int) -> None:
        self.settings, self.frames, self.patches, self._seed = settings, frames, patches, seed

    def loss(self, outputs: Tensor, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """Of embeddings [T · N · n, D], frame after frame and in these patch after patch, each of n clips."""
        with full_precision(outputs):
            z = unit(outputs)
            nodes = z.unflatten(0, (self.frames, self.patches, -1)).permute(2, 0, 1, 3)  # [n, T, N, D]
            cosines = nodes[:, :-1] @ nodes[:, 1:].mT
            ways = torch.stack([cosines, cosines.mT], dim=1)  # [n, 2, T - 1, N, N]: out, and back over the same steps
            first = moment.images + rank() * len(ways)
            closed = dropped(self._seed, first, tuple(ways.shape), self.settings.edge_drop, ways.device)
            each = [-(_ends(walk) + LEAST).log().mean() for walk in self._walks(ways.masked_fill(closed, NEVER))]
            loss = torch.stack(each).mean()
            return loss, self._metrics(loss, z, ways.detach()) if log else {}

    def _walks(self, ways: Tensor) -> list[Tensor]:
        """R_2, …, R_(T - 1), each [n, N, N]: from the patches of the first frame to them."""
        forth, back = (ways / self.settings.temperature).softmax(-1).unbind(1)
        out, home, walks = forth[:, 0], back[:, 0], []
        for step in range(1, self.frames - 1):
            out, home = out @ forth[:, step], back[:, step] @ home
            walks.append(out @ home)
        return walks

    @torch.no_grad()
    def _metrics(self, loss: Tensor, z: Tensor, ways: Tensor) -> dict[str, Tensor]:
        """`cycle_accuracy`, `shortest_cycle`: how often the likeliest end of the longest walk, and of the shortest, is
        where it began, with no edge dropped."""
        own = torch.arange(self.patches, device=z.device)
        returned = [(walk.argmax(2) == own).to(z.dtype).mean() for walk in self._walks(ways)]
        return logged(loss, z, cycle_accuracy=returned[-1], shortest_cycle=returned[0])


def _ends(walk: Tensor) -> Tensor:
    """How likely each walk of [n, N, N] ends where it began, [n, N]."""
    return walk.diagonal(dim1=1, dim2=2)
