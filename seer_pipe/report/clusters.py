"""The clusters of a file of embeddings: sizes, centres, who is near, what they have in common.

Sizes are exact. All else is of a sample of at most SAMPLE images, whole row groups spread evenly, so memory holds one
row group, the centres, and a few numbers an image; it does not grow with the set.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import torch

from seer_pipe.errors import UserError
from seer_pipe.evaluate.cluster import count
from seer_pipe.evaluate.embeddings import CLUSTERS, clusters_of, features, open_clusters, open_embeddings, sampled
from seer_pipe.evaluate.labels import Labeller, labeller
from seer_pipe.report.ingested import domain
from seer_pipe.shards import ShardSet

SAMPLE = 1_000_000  # images whose features are read
OUTLIERS, NEIGHBOURS, REDUCED = 48, 6, 64  # images, clusters, dimensions that neighbours are sought in
ANSWERS, HOMES = 12, 3  # images and clusters nearest to a picture that is searched for
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass
class Clusters:
    """Arrays of length k, one element per cluster that has images in the sample, the largest first; rows are
    those of the sample."""

    cluster: Ints
    size: Ints  # images, exact
    cohesion: Floats  # mean cosine of its images to its centre
    repeated: Floats  # share of its images that look like another of the sample
    place: Floats  # [k, 2] on the map, in [-1, 1]
    near: Ints  # [k, NEIGHBOURS] nearest clusters, by their number here
    centres: Floats  # [k, width], of unit length
    nearest: list[list[int]]  # sample rows of the images nearest to its centre
    group: list[tuple[str, float]]  # most frequent label, or domain, and its share
    outliers: list[int]  # sample rows furthest from their centres
    asked: list[tuple[list[int], list[int]]]  # of each picture searched for: nearest sample rows, nearest clusters
    images: int  # in the file
    named: int  # clusters, also those without an image in the file
    empty: int  # these
    rows: Sample


@dataclass
class Sample:
    """What is known of each image of the sample."""

    key: list[str]
    shard: list[str]
    index: Ints
    cluster: Ints


def clusters(
    file: Path,
    shards: ShardSet,
    labels: str | None,
    show: int,
    asked: Floats | None = None,
    names: Path | None = None,
) -> Clusters:
    """Read a file of ``seer-pipe embed`` over the set ``shards``.

    ``names``: the file that names the clusters of its images, row group for row group; by default the same.
    ``labels``: what defines groups, as in the evaluations; by default domains.
    ``show``: nearest images kept of each cluster; ``asked``: features [q, width] of pictures to be searched for.
    """
    data, naming = open_embeddings(file), open_clusters(names or file)
    sizes = count(naming)
    total = int((naming.schema_arrow.metadata or {}).get(CLUSTERS, len(sizes)))
    chosen = sampled(data, SAMPLE)
    rows, sums = _centres(data, naming, chosen, len(sizes))
    centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    wanted = np.zeros((0, centres.shape[1]), np.float32) if asked is None else asked
    wanted = wanted / np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), 1e-12)
    to_centre, to_wanted = [], []
    for cluster, unit in _features(data, naming, chosen):
        to_centre.append(np.einsum("nd,nd->n", unit, centres[cluster]))
        to_wanted.append(unit @ wanted.T)
    cosine, alike = np.concatenate(to_centre).astype(np.float32), np.concatenate(to_wanted)
    seen = np.bincount(rows.cluster, minlength=len(sizes))
    order = np.argsort(-sizes, kind="stable")
    order = order[(sizes[order] > 0) & (seen[order] > 0)]
    cohesion = np.bincount(rows.cluster, cosine, len(sizes)) / np.maximum(seen, 1)
    by = labeller(shards, labels) if labels else Labeller("source", domain)
    named, hashes = sidecars_of(shards, rows, by.column)
    known = hashes != 0
    _, at, times = np.unique(hashes, return_inverse=True, return_counts=True)
    again = (times[at] > 1) & known
    repeated = np.bincount(rows.cluster, again, len(sizes)) / np.maximum(seen, 1)
    by_cosine = np.lexsort((-cosine, rows.cluster))  # the rows of a cluster stand together, nearest first
    starts = np.searchsorted(rows.cluster[by_cosine], np.arange(len(sizes) + 1))
    groups = [by.label(one) for one in named]
    kept = centres[order]
    return Clusters(
        cluster=order, size=sizes[order], cohesion=cohesion[order].astype(np.float32),
        repeated=repeated[order].astype(np.float32), place=(reduced := reduce(kept))[:, :2] / _extent(reduced),
        near=neighbours(reduced), centres=kept,
        nearest=[by_cosine[starts[p] : min(starts[p] + show, starts[p + 1])].tolist() for p in order],
        group=[_most([groups[row] for row in by_cosine[starts[p] : starts[p + 1]]]) for p in order],
        outliers=np.argsort(cosine)[:OUTLIERS].tolist(), images=int(sizes.sum()), rows=rows,
        named=total, empty=total - int((sizes > 0).sum()),
        asked=[(np.argsort(-alike[:, q], kind="stable")[:ANSWERS].tolist(),
                np.argsort(-(kept @ wanted[q]), kind="stable")[:HOMES].tolist()) for q in range(len(wanted))],
    )  # fmt: skip


def _features(data: pq.ParquetFile, naming: pq.ParquetFile, groups: list[int]) -> Iterator[tuple[Ints, Floats]]:
    """Clusters and features of unit length, a row group at a time."""
    for group, cluster in zip(groups, clusters_of(naming, groups), strict=True):
        yield cluster, features(data.read_row_group(group, ["feature"]), unit=True).numpy()


def _centres(data: pq.ParquetFile, naming: pq.ParquetFile, groups: list[int], k: int) -> tuple[Sample, Floats]:
    """What is known of each image, and the sum of the unit features of each cluster."""
    keys: list[str] = []
    paths: list[str] = []
    index, clusters, sums = [], [], None
    for group, (cluster, unit) in zip(groups, _features(data, naming, groups), strict=True):
        table = data.read_row_group(group, ["key", "shard", "index"])
        keys += table["key"].to_pylist()
        paths += table["shard"].to_pylist()
        index.append(table["index"].to_numpy().astype(np.int64))
        clusters.append(cluster)
        sums = np.zeros((k, unit.shape[1]), np.float32) if sums is None else sums
        order = np.argsort(cluster, kind="stable")
        there, first = np.unique(cluster[order], return_index=True)
        sums[there] += np.add.reduceat(unit[order], first)
    assert sums is not None
    return Sample(keys, paths, np.concatenate(index), np.concatenate(clusters)), sums


def sidecars_of(shards: ShardSet, rows: Sample, column: str) -> tuple[list[str], npt.NDArray[np.uint64]]:
    """What stands in a column and the perceptual hash (0: none) of each image, a sidecar at a time."""
    numbers = {path: number for number, path in enumerate(shards.paths)}
    named = [""] * len(rows.key)
    hashes = np.zeros(len(rows.key), np.uint64)
    by_shard: defaultdict[str, list[int]] = defaultdict(list)
    for row, path in enumerate(rows.shard):
        by_shard[path].append(row)
    for path, at in by_shard.items():
        if path not in numbers:
            raise UserError(f"{shards.store.url}: has no shard {path}, which the embeddings are of; give their --data")
        table = shards.sidecar(numbers[path], list({column, "phash"})).take(rows.index[at])
        for row, one in zip(at, table[column].to_pylist(), strict=True):
            named[row] = "" if one is None or one != one else str(one)  # a number that is none is no label
        hashes[at] = table["phash"].fill_null(0).to_numpy()
    return named, hashes


def _most(names: list[str]) -> tuple[str, float]:
    """The most frequent name and its share of those that have one."""
    counts = Counter(name for name in names if name)
    if not counts:
        return "", 0.0
    name, times = counts.most_common(1)[0]
    return name, times / counts.total()


def reduce(centres: Floats) -> Floats:
    """Principal components of the centres [k, width], the first REDUCED at most, [k, >= 2]; each has a fixed sign."""
    x = torch.from_numpy(centres - centres.mean(0))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        _, _, v = torch.svd_lowrank(x, q=min(REDUCED, *x.shape), niter=4)
    v *= torch.sign(v.gather(0, v.abs().argmax(0, keepdim=True)))
    found = (x @ v).numpy()
    return np.pad(found, ((0, 0), (0, max(0, 2 - found.shape[1]))))


def _extent(reduced: Floats) -> Any:
    return max(float(np.abs(reduced[:, :2]).max()), 1e-12)


def neighbours(reduced: Floats, rows: int = 2048) -> Ints:
    """The nearest others of each row, [k, at most NEIGHBOURS], by Euclidean distance."""
    x = torch.from_numpy(reduced)
    most = min(NEIGHBOURS, len(x) - 1)
    found = []
    for start in range(0, len(x), rows):
        distance = torch.cdist(x[start : start + rows], x)
        distance[torch.arange(len(distance)), start + torch.arange(len(distance))] = torch.inf
        found.append(distance.topk(most, dim=1, largest=False).indices)
    return torch.cat(found).numpy()
