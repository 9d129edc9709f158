"""SeLa-v2: labels that use all clusters equally, by Sinkhorn over the memory; prototypes are trained (Asano et al.
2020, arXiv 1911.05371, section 3; version 2 in Caron et al. 2020, arXiv 2006.09882, appendix D).

A refresh keeps the prototypes c_k of that moment, and finds the K offsets o_k with which the soft labels
softmax_k((x · c_k + o_k) / epsilon) of the memory's N rows x use each cluster N / K times: each iteration subtracts
epsilon times the log of what a cluster has too much. (Sinkhorn's matrix is diag(u) · exp(x · c_k / epsilon) · diag(v),
with v_k = exp(o_k / epsilon); u follows from v.) The hard label is the largest, so K numbers stand for the labels of
any number of images. A cluster stays what it was through a refresh, for its prototype and offset are where they were.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seer_pipe.distributed.collectives import all_sum_
from seer_pipe.distributed.parts import change_rows, whole
from seer_pipe.objectives.base import Moment
from seer_pipe.objectives.clusters import Clustered, pieces
from seer_pipe.objectives.sela.settings import SelaSettings
from seer_pipe.objectives.settings import Setup
from seer_pipe.objectives.swav.objective import SwavHead


class Sela(Clustered):
    """``head``: its prototypes, those of all heads one after another, are kept at unit norm here."""

    settings: SelaSettings

    def __init__(self, head: SwavHead, settings: SelaSettings, setup: Setup) -> None:
        super().__init__(settings, setup)
        self.head = head

    @torch.no_grad()
    def before_step(self, moment: Moment) -> None:
        change_rows(self.head.prototypes.weight, lambda rows: F.normalize(rows, dim=1))

    def embedded(self, outputs: Any) -> Tensor:
        embeddings: Tensor = outputs.embeddings
        return embeddings

    def scores(self, outputs: Any, embeddings: Tensor, head: int) -> Tensor:
        scores: Tensor = outputs.scores.unflatten(1, (self.settings.heads, -1))[:, head]
        return scores

    def recluster(self, head: int, rows: Tensor, number: int) -> None:
        prototypes = whole(self.head.prototypes.weight).unflatten(0, (self.settings.heads, -1))[head]
        self.centroids[head] = F.normalize(prototypes, dim=1)
        self.offsets[head] = evened(
            rows, self.centroids[head], self.offsets[head], self.settings.epsilon, self.settings.sinkhorn_iterations
        )


def evened(rows: Tensor, centroids: Tensor, offsets: Tensor, epsilon: float, iterations: int) -> Tensor:
    """Offsets [K] with which the soft labels of the unit rows [m, D] of all ranks use the centroids [K, D] equally,
    from ``offsets`` on. Scores are never held for more than a piece of the rows."""
    offsets = offsets.double()
    for _ in range(iterations):
        mass = torch.zeros_like(offsets)
        for piece in pieces(rows, len(centroids)):
            mass += F.softmax((piece @ centroids.T + offsets.float()) / epsilon, dim=1).sum(0, dtype=torch.float64)
        share = all_sum_(mass).clamp_min(torch.finfo(torch.float32).tiny) / mass.sum()
        offsets = offsets - epsilon * (share * len(centroids)).log()
    return (offsets - offsets.mean()).float()
