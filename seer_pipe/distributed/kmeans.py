"""K-means of rows that are spread over ranks: spherical, as DeepCluster-v2 clusters its memory, or Euclidean.

In the spherical one (arXiv 2006.09882) rows count by their direction alone: a row belongs to the centroid of the
largest cosine, and a centroid is the mean direction of its rows (Dhillon and Modha 2001). In the Euclidean one a row
belongs to the centroid of the least distance, and a centroid is the mean of its rows (Lloyd 1982). All that is random
follows from (seed, number) and from the rows' global numbers, and sums over rows are float64, so the result does not
depend on how the rows are spread, up to rows that are equally near to two centroids.

Rows are only read, a piece at a time: they may be a map of a file that is larger than memory.
"""

from __future__ import annotations

import heapq
import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from seer_pipe.distributed.collectives import all_gather_rows, all_sum_, rank

#: Numbers in flight at once: products of a piece of rows with all centroids, and the rows themselves.
PIECE = 1 << 25
#: How far a split moves the new centroid (faiss: 1/1024): small against a cluster, large against float32's rounding.
SPLIT = 1e-3


@dataclass(frozen=True)
class Clustering:
    centroids: Tensor  # [K, D] float32, the same on every rank; of unit length where spherical
    cluster: Tensor  # [n] int64, of this rank's rows
    sizes: Tensor  # [K] int64, rows of all ranks
    scores: list[float]  # what is maximised, per iteration: the mean of `nearest`'s scores over all rows

    @property
    def score(self) -> float:
        return self.scores[-1]


@torch.no_grad()
def kmeans(
    rows: Tensor,
    clusters: int,
    *,
    seed: int,
    number: int = 0,
    start: Tensor | None = None,
    iterations: int = 10,
    spherical: bool = True,
    group: dist.ProcessGroup | None = None,
) -> Clustering:
    """Cluster the rows of all ranks.

    A centroid without rows is put beside that of the largest cluster, which so is split, and counts as half from then
    on; where no cluster has two rows it stays where it is. It ends early when no row changes its cluster.

    Args:
        rows: this rank's, [n, D] of any floating-point type; n may differ between ranks, and be 0.
        number: distinguishes the clusterings of one run.
        start: centroids [K, D] to start from, the same on every rank; by default distinct rows of all ranks, drawn
            by their global numbers, which are in the order of ranks; fewer rows than clusters start several each.
        iterations: times that the centroids move.
        spherical: by cosine; else by Euclidean distance, to rows as they are.
        group: a process group, or None for all ranks.

    Raises:
        ValueError: there are no rows on any rank, or rows that are not finite.
    """
    counts = all_gather_rows(torch.tensor([len(rows)], device=rows.device), group).tolist()
    if not sum(counts):
        raise ValueError("k-means: there are no rows")
    draws = random.Random(f"k-means {seed} {number}")
    with torch.autocast(rows.device.type, enabled=False):
        if start is None:
            chosen = draws.sample(range(sum(counts)), min(clusters, sum(counts)))
            start = _rows_at(
                rows, [chosen[k % len(chosen)] for k in range(clusters)], sum(counts[: rank(group)]), group
            )
        centroids = F.normalize(start.float()) if spherical else start.float()
        cluster = torch.full((len(rows),), -1, device=rows.device)
        scores: list[float] = []
        while True:
            sums, sizes, score, changed = _assign(rows, centroids, cluster, spherical, group)
            if not math.isfinite(score):
                raise ValueError("k-means: there are rows that are not finite")
            scores.append(score)
            if not changed or len(scores) > iterations:
                return Clustering(centroids, cluster, sizes, scores)
            centroids = _moved(centroids, sums, sizes, spherical, draws.getrandbits(63))


@torch.no_grad()
def nearest(rows: Tensor, centroids: Tensor, *, spherical: bool = True) -> tuple[Tensor, Tensor]:
    """The nearest centroid [n] int64 of each row [n, D], and its score [n] float32.

    The score is the cosine, of centroids [K, D] of unit length; or, where not ``spherical``, minus the squared
    distance. A row of zeros has cosine 0 to all, and falls to the first.
    """
    with torch.autocast(rows.device.type, enabled=False):
        found = [_nearest(piece, centroids, spherical) for piece in _pieces(rows, len(centroids), spherical)]
    if not found:
        return rows.new_zeros(0, dtype=torch.int64), rows.new_zeros(0, dtype=torch.float32)
    return torch.cat([cluster for cluster, _ in found]), torch.cat([score for _, score in found])


def _pieces(rows: Tensor, clusters: int, spherical: bool) -> Iterator[Tensor]:
    """The rows as float32, of unit length where ``spherical``, in pieces of bounded memory."""
    for piece in rows.split(max(1, PIECE // (clusters + 4 * rows.shape[1]))):
        if len(piece):
            yield F.normalize(piece.float()) if spherical else piece.float()


def _nearest(piece: Tensor, centroids: Tensor, spherical: bool) -> tuple[Tensor, Tensor]:
    if spherical:
        cosine, cluster = (piece @ centroids.T).max(dim=1)
        return cluster, cosine
    # |x - c|² less |x|², which is the same for all c; the score is computed apart, without its cancellation
    cluster = torch.addmm(centroids.square().sum(dim=1), piece, centroids.T, alpha=-2).argmin(dim=1)
    return cluster, -(piece - centroids[cluster]).square().sum(dim=1)


def _assign(
    rows: Tensor, centroids: Tensor, cluster: Tensor, spherical: bool, group: dist.ProcessGroup | None
) -> tuple[Tensor, Tensor, float, float]:
    """Put the nearest centroid of each row into ``cluster``. Over all ranks: the sums [K, D] of each cluster's rows,
    of unit length where ``spherical``, and its size [K], the mean score, and the share of the rows whose cluster
    changed; in one collective."""
    k, width = centroids.shape
    flat = torch.zeros(k * width + k + 2, dtype=torch.float64, device=rows.device)
    sums, sizes, totals = flat[: k * width].view(k, width), flat[k * width : -2], flat[-2:]
    at = 0
    for piece in _pieces(rows, k, spherical):
        found, score = _nearest(piece, centroids, spherical)
        before = cluster[at : at + len(piece)]
        totals += torch.stack([score.sum(dtype=torch.float64), (found != before).sum()])
        before.copy_(found)
        sums.index_add_(0, found, piece.double())
        sizes.index_add_(0, found, torch.ones_like(score, dtype=torch.float64))
        at += len(piece)
    all_sum_(flat, group)
    mean, changed = (totals / sizes.sum()).tolist()
    return sums, sizes.long(), mean, changed


def _moved(centroids: Tensor, sums: Tensor, sizes: Tensor, spherical: bool, seed: int) -> Tensor:
    """The mean of each cluster, or its direction; where its rows cancel out to none, or there are none, it stays."""
    length = sums.norm(dim=1, keepdim=True) if spherical else sizes[:, None].double()
    least = 1e-9 * sizes[:, None] if spherical else 0
    moved = torch.where(length > least, sums / length, centroids.double()).float()
    if pairs := _splits(sizes.tolist()):
        empty, large = torch.tensor(pairs, device=moved.device).T
        noise = torch.randn(len(pairs), moved.shape[1], generator=torch.Generator().manual_seed(seed))
        beside = moved[large] + SPLIT * moved.norm(dim=1).mean() * F.normalize(noise).to(moved.device)
        moved[empty] = F.normalize(beside) if spherical else beside
    return moved


def _splits(sizes: Sequence[int]) -> list[tuple[int, int]]:
    """For each empty cluster the one that it is to share with: the largest, which counts as half from then on."""
    heap = [(-float(size), cluster) for cluster, size in enumerate(sizes) if size > 1]
    heapq.heapify(heap)
    pairs = []
    for empty in (cluster for cluster, size in enumerate(sizes) if size == 0):
        if not heap or heap[0][0] >= -1:
            break
        size, large = heap[0]
        heapq.heapreplace(heap, (size / 2, large))
        pairs.append((empty, large))
    return pairs


def _rows_at(rows: Tensor, numbers: Sequence[int], before: int, group: dist.ProcessGroup | None) -> Tensor:
    """The rows of these global numbers, on every rank. ``before``: rows of the ranks before this one."""
    at = torch.tensor(numbers, device=rows.device) - before
    own = (at >= 0) & (at < len(rows))
    found = torch.zeros(len(numbers), rows.shape[1], device=rows.device)
    found[own] = rows[at[own]].float()
    return all_sum_(found, group)
