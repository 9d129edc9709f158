"""Balanced sampling over a hierarchy of clusters, after Vo et al. 2024 (arXiv 2405.15613), without any file.

K-means puts more centroids where there are more images. Clustering the centroids again, and again from those that lie
nearest to the new centres alone, level upon level, spreads the topmost clusters evenly over what there is, however many
images show it. A sample that takes as many images of every cluster, from the top down, is then balanced.

All clusterings are spherical here; the paper's are Euclidean.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from seer_pipe.data.order import Ints
from seer_pipe.distributed.kmeans import kmeans, nearest

ITERATIONS, RESAMPLINGS = 50, 10  # of each level above the lowest, as in the paper's configuration
PER_CLUSTER, FAN, LEAST, MOST = 8, 4, 8, 16_000  # images of a lowest cluster; clusters under one; of a level


def default_levels(images: int) -> list[int]:
    """Clusters per level, the lowest first: an eighth of the images, at most MOST; then a quarter of the level below,
    as long as that is LEAST at least."""
    levels = [max(2, min(MOST, images // PER_CLUSTER))]
    while levels[-1] // FAN >= LEAST:
        levels.append(levels[-1] // FAN)
    return levels


def hierarchy(centroids: Tensor, levels: Sequence[int], *, seed: int) -> list[Ints]:
    """The clusters of clusters: for each of ``levels``, the numbers of clusters of the levels above the lowest, the
    cluster there [K] of each of the K of the level below it, whose lowest are at ``centroids`` [K, D]."""
    parents = []
    for level, clusters in enumerate(levels):
        half = len(centroids) // clusters // 2  # of the average cluster, as in the paper
        number = level * (RESAMPLINGS + 1)
        found = kmeans(centroids, clusters, seed=seed, number=number, iterations=ITERATIONS)
        for again in range(1, RESAMPLINGS + 1 if half > 1 else 1):
            near = _nearest_of_each(*nearest(centroids, found.centroids), half)
            found = kmeans(centroids[near], clusters, seed=seed, number=number + again, iterations=ITERATIONS)
        parents.append(nearest(centroids, found.centroids)[0].cpu().numpy())
        centroids = found.centroids
    return parents


def _nearest_of_each(cluster: Tensor, cosine: Tensor, most: int) -> Tensor:
    """The numbers of the rows that are among the ``most`` nearest to the centroid of their cluster."""
    order = np.lexsort((-cosine.cpu().numpy(), cluster.cpu().numpy()))
    return torch.from_numpy(np.sort(order[_place(cluster.cpu().numpy()[order]) < most])).to(cluster.device)


def _place(groups: Ints) -> Ints:
    """The place of each row, from 0, in its run of equal ``groups``."""
    starts = np.flatnonzero(np.diff(groups, prepend=-1))
    return np.arange(len(groups)) - np.repeat(starts, np.diff(starts, append=len(groups)))


def ancestors(clusters: int, parents: Sequence[Ints]) -> list[Ints]:
    """Of each of so many lowest clusters the cluster of every level that it belongs to, its own first."""
    found = [np.arange(clusters)]
    for parent in parents:
        found.append(parent[found[-1]])
    return found


def totals(sizes: Ints, parents: Sequence[Ints]) -> list[Ints]:
    """Images of the clusters of every level, the lowest, of ``sizes``, first."""
    every = [sizes]
    for parent, above in zip(parents, [*map(len, parents[1:]), 0], strict=False):
        every.append(np.bincount(parent, every[-1], above).astype(np.int64))
    return every


def share(sizes: Ints, target: int, rng: np.random.Generator) -> Ints:
    """``target`` images divided over clusters of ``sizes``: as many of each as it has, but of none more than a level
    that makes up the target; what then is left over falls to clusters at random, one each."""
    if sizes.sum() <= target:
        return sizes
    low, high = 0, int(sizes.max())  # the level: the last one at which the sum is within the target
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if np.minimum(sizes, middle).sum() <= target else (low, middle)
    kept = np.minimum(sizes, low)
    kept[rng.choice(np.flatnonzero(sizes > low), target - int(kept.sum()), replace=False)] += 1
    return kept


def allot(sizes: Ints, parents: Sequence[Ints], target: int, rng: np.random.Generator) -> Ints:
    """How many images to take of each of the lowest clusters, [K], where ``target`` are wanted of all: shared out over
    the topmost clusters, then within each over those below it, and so on."""
    every = totals(sizes, parents)
    kept = share(every[-1], target, rng)
    for below, parent in zip(every[-2::-1], reversed(parents), strict=True):
        order = np.argsort(parent, kind="stable")
        ends = np.searchsorted(parent[order], np.arange(len(kept) + 1))
        given = np.zeros_like(below)
        for cluster in np.flatnonzero(kept).tolist():
            own = order[ends[cluster] : ends[cluster + 1]]
            given[own] = share(below[own], int(kept[cluster]), rng)
        kept = given
    return kept


def default_target(sizes: Ints, parents: Sequence[Ints], repeats: int = 1) -> int:
    """So many images that no topmost cluster gives more than the median one holds, each taken ``repeats`` times at
    most."""
    top = totals(sizes, parents)[-1]
    return int(np.minimum(top * repeats, int(np.median(top[top > 0]))).sum())


def choose(cluster: Ints, kept: Ints, rng: np.random.Generator) -> Ints:
    """How often to take each image: of the lowest cluster k, to which those with ``cluster`` k belong, ``kept[k]`` in
    all, at random and none again before all were taken; none where ``cluster`` is -1."""
    order = rng.permutation(len(cluster))
    order = order[np.argsort(cluster[order], kind="stable")]
    order = order[cluster[order] >= 0]
    own = cluster[order]
    each, further = np.divmod(kept, np.maximum(np.bincount(own, minlength=len(kept)), 1))
    times = np.zeros(len(cluster), np.int64)
    times[order] = each[own] + (_place(own) < further[own])
    return times
