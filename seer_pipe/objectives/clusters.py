"""Clusters of a memory as labels: what DeepCluster and SeLa have in common.

Each of H heads has K unit centroids c_k and offsets o_k, which follow from the memory at a refresh and stay until the
next. Head h labels an image by the row x that the memory has of its crop a_h (the assignment crops in turn), and all
crops v predict that label with scores s_v::

    label = argmax_k  x · c_k + o_k
    loss  = mean over h, v, and images that have a row, of  -log softmax(s_v / temperature)[label]

With a bank the row is what an earlier visit wrote. In a stream images come once: x is then what a momentum copy of the
network makes of crop a_h, the other crops predict its label, and the ring of the copy's last embeddings is clustered.
(With labels by the network itself all images move to few clusters between two refreshes, and the loss to 0: the copy
must move less between them.) Before the first refresh nothing has a label, and only the memory is filled.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seer_pipe.distributed.collectives import all_gather_rows, all_max_, all_sum_, world_size
from seer_pipe.models import Trunk
from seer_pipe.objectives.base import Moment, Network, Objective, take_saved
from seer_pipe.objectives.cluster_settings import ClusterSettings
from seer_pipe.objectives.heads import full_precision, projection, unit
from seer_pipe.objectives.memory import memory_of
from seer_pipe.objectives.metrics import entropy, logged
from seer_pipe.objectives.momentum import MomentumNetwork, momentum_at
from seer_pipe.objectives.settings import Setup

#: Scores in flight at once.
PIECE = 1 << 25
SAME = "views, shard set, head, ring, heads and prototypes"


class Clustered(Objective):
    """What implementations bring: the scores of a batch, and a head's centroids and offsets at a refresh."""

    def __init__(self, settings: ClusterSettings, setup: Setup) -> None:
        self.settings, self.refresh_images = settings, settings.refresh_images
        heads, k, dim, device = settings.heads, settings.prototypes, settings.head.dim, setup.device
        self._crops, self._seed, self._batch = setup.views.count, setup.seed, setup.batch
        self._turns = [h % len(settings.assign) for h in range(heads)]  # which of the assignment crops a head takes
        self.centroids = torch.zeros(heads, k, dim, device=device)
        self.offsets = torch.zeros(heads, k, device=device)
        self.health = torch.zeros(len(HEALTH), device=device)  # of the last refresh
        shape = len(settings.assign), dim
        self.memory = memory_of(settings.ring, settings.bank, shape, setup)

    def embedded(self, outputs: Any) -> Tensor:
        """Unit embeddings [V · n, D] of what trunk and head returned."""
        raise NotImplementedError

    def scores(self, outputs: Any, embeddings: Tensor, head: int) -> Tensor:
        """Of a head [V · n, K]."""
        raise NotImplementedError

    def recluster(self, head: int, rows: Tensor, number: int) -> None:
        """Set the centroids and offsets of a head by this rank's rows [m, D] of the memory. All ranks call it."""
        raise NotImplementedError

    def momentum(self, moment: Moment) -> float:
        schedule = self.settings.momentum
        return momentum_at(schedule.start, schedule.end, moment, self._batch, schedule.batch)

    def loss(self, outputs: Any, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        outputs, copied = outputs if self.settings.ring else (outputs, None)
        z = self.embedded(outputs)
        with full_precision(z):
            crops = z.unflatten(0, (self._crops, -1))[self.settings.assign]
            if copied is not None:
                crops = unit(copied).unflatten(0, (len(self.settings.assign), -1))
            fresh = crops.detach().transpose(0, 1)  # [n, A, D]
            rows = self.memory.recall(moment.samples, fresh)
            labelled = rows.flatten(1).any(1) & self.centroids.any()
            weights = labelled.to(z.dtype) / all_sum_(labelled.sum().to(z.dtype)).clamp_min(1) * world_size()
            losses, right, sizes = [], [], []
            for head, turn in enumerate(self._turns):
                label = (rows[:, turn] @ self.centroids[head].to(z.dtype).T + self.offsets[head]).argmax(1)
                scores = self.scores(outputs, z, head)
                costs = F.cross_entropy(scores / self.settings.temperature, label.repeat(self._crops), reduction="none")
                others = [v for v in range(self._crops) if not (self.memory.echoes and v == self.settings.assign[turn])]
                losses.append((costs.unflatten(0, (self._crops, -1))[others].mean(0) * weights).sum())
                if log:
                    found = (scores.argmax(1) == label.repeat(self._crops)).unflatten(0, (self._crops, -1))
                    right.append((found[others].to(z.dtype).mean(0) * weights).sum())
                    sizes.append(z.new_zeros(self.settings.prototypes).index_add_(0, label, weights))
            loss = torch.stack(losses).mean()
            self.memory.remember(fresh)
            return loss, self._metrics(loss, z, labelled, right, sizes) if log else {}

    @torch.no_grad()
    def refresh(self, number: int, moment: Moment) -> None:
        rows = self._rows_here()
        if not all_sum_(torch.tensor(len(rows), device=rows.device)):
            return  # every step so far was taken back
        found = []
        for head, turn in enumerate(self._turns):
            mine = rows[:, turn]
            before = self._labels(mine, head)
            self.recluster(head, mine, number)
            found.append(compared(before, self._labels(mine, head), self.settings.prototypes))
        self.health = torch.stack(found).mean(0).to(self.health)

    def state_dict(self) -> dict[str, Tensor]:
        kept = self.memory.state_dict()
        return {"centroids": self.centroids, "offsets": self.offsets, "health": self.health, **kept}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, own in ("centroids", self.centroids), ("offsets", self.offsets), ("health", self.health):
            take_saved(own, state[name], f"the {name} of the clusters", SAME)
        self.memory.load_state_dict(state, self.settings.name)

    def _rows_here(self) -> Tensor:
        """This rank's share of what the memory holds, [m, A, D]."""
        rows = self.memory.share()
        return rows[rows.flatten(1).any(1)]

    def _labels(self, rows: Tensor, head: int) -> Tensor:
        """Of a head, [m]."""
        found = [
            (piece @ self.centroids[head].T + self.offsets[head]).argmax(1)
            for piece in pieces(rows, self.settings.prototypes)
        ]
        return torch.cat([torch.zeros(0, dtype=torch.int64, device=rows.device), *found])

    @torch.no_grad()
    def _metrics(
        self, loss: Tensor, z: Tensor, labelled: Tensor, right: list[Tensor], sizes: list[Tensor]
    ) -> dict[str, Tensor]:
        """Of the memory at the last refresh, means over heads: see `compared`. Of the batch: the share of images that
        have a label, and of their crops that predict it; the perplexity of the labels, 1 where as many as there could
        be are as frequent as one another."""
        metrics = logged(loss, z, labelled=labelled.to(z.dtype).mean(), label_accuracy=torch.stack(right).mean(),
                         label_perplexity=torch.stack(sizes))  # fmt: skip
        most = min(self.settings.prototypes, len(labelled) * world_size())
        metrics["label_perplexity"] = entropy(metrics["label_perplexity"]).exp().mean() / most
        return metrics | dict(zip(HEALTH, self.health.unbind(), strict=True))


def network_of(
    settings: ClusterSettings, trunk: Callable[[], Trunk], head: Callable[[list[int]], tuple[nn.Module, nn.Module]]
) -> Network:
    """The network, with momentum copies where there is a ring. ``head`` makes, of the widths from features to
    embeddings, the head and the projection in it."""
    made = trunk()
    dims = [made.width, *settings.head.hidden, settings.head.dim]
    whole, project = head(dims)
    if not settings.ring:
        return Network(made, whole)
    copied = projection(dims, settings.head.batch_norm)
    return MomentumNetwork(made, whole, trunk(), copied, original=project, targets=settings.assign)


HEALTH = ("cluster_perplexity", "clusters_empty", "cluster_largest", "refresh_nmi")


def pieces(rows: Tensor, clusters: int) -> Iterator[Tensor]:
    """Rows [m, D] as float32, in pieces whose scores have bounded memory."""
    for piece in rows.split(max(1, PIECE // clusters)):
        yield piece.float()


def compared(before: Tensor, after: Tensor, clusters: int) -> Tensor:
    """Of the clusters [m] of this rank's rows before and after a refresh, over all ranks, [4] float64: the perplexity
    of the sizes as a share of all clusters (1: even), the shares of clusters that are empty and of rows in the largest,
    and the normalised mutual information 2 I(before; after) / (H(before) + H(after)), 1 where both are one cluster."""
    pairs, count = _pairs(before * clusters + after)
    joint = count.double() / count.sum()
    first, sizes = (torch.bincount(part, joint, clusters) for part in (pairs // clusters, pairs % clusters))
    own = entropy(first) + entropy(sizes)
    shared = own - entropy(joint)
    nmi = torch.where(own > 1e-12, 2 * shared / own.clamp_min(1e-12), torch.ones_like(own))
    return torch.stack([entropy(sizes).exp() / clusters, (sizes == 0).double().mean(), sizes.max(), nmi])


def _pairs(codes: Tensor) -> tuple[Tensor, Tensor]:
    """The different ones of all ranks' numbers, and how often each is there. A table of all pairs of 16,000 clusters
    would be 2 GB, and hardly any of them is there: clusters stay what they were."""
    own, count = codes.unique(return_counts=True)
    most = int(all_max_(torch.tensor(len(own), device=own.device)))
    found = all_gather_rows(F.pad(torch.stack([own, count], 1), (0, 0, 0, most - len(own))))  # zeros: none of pair 0
    pairs, place = found[:, 0].unique(return_inverse=True)
    return pairs, torch.zeros_like(pairs).index_add_(0, place, found[:, 1])
