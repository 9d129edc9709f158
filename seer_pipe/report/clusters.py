"""The clusters of a file of embeddings: sizes, centres, who is near, what they have in common.

Sizes are exact. All else is of a sample of at most SAMPLE images, whole row groups spread evenly, so memory holds one
row group, the centres, and a few numbers an image; it does not grow with the set.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
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
REPEATS, COPIES = 48, 8  # sets of images that look alike, and images shown of each
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
    reduced: Floats  # [k, >= 2] principal components of the centres
    near: Ints  # [k, NEIGHBOURS] nearest clusters, by their number here
    centres: Floats  # [k, width], of unit length
    ranked: Ints  # [n] sample rows, those of a cluster together, nearest to its centre first
    start: Ints  # [k + 1] where those of each begin
    group: list[tuple[str, float]]  # most frequent label, or domain, and its share
    outliers: list[int]  # sample rows furthest from their centres
    repeats: list[tuple[int, list[int]]]  # images that look alike: how many, and at most COPIES sample rows; most first
    asked: list[tuple[list[int], list[int]]]  # of each picture searched for: nearest sample rows, nearest clusters
    images: int  # in the file
    named: int  # clusters, also those without an image in the file
    empty: int  # these
    rows: Sample
    cosine: Floats  # [n] of each sample row to its centre
    alike: Floats  # [n, NEIGHBOURS] to the centres of the clusters near its own
    groups: list[str]  # [n] its label, or domain; "" where it has none
    again: npt.NDArray[np.bool_]  # [n] whether another of the sample looks like it


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
    asked: Floats | None = None,
    names: Path | None = None,
) -> Clusters:
    """Read a file of ``seer-pipe embed`` over the set ``shards``.

    ``names``: the file that names the clusters of its images, row group for row group; by default the same.
    ``labels``: what defines groups, as in the evaluations; by default domains.
    ``asked``: features [q, width] of pictures to be searched for.
    """
    data, naming = open_embeddings(file), open_clusters(names or file)
    sizes = count(naming)
    total = int((naming.schema_arrow.metadata or {}).get(CLUSTERS, len(sizes)))
    chosen = sampled(data, SAMPLE)
    rows, sums = _centres(data, naming, chosen, len(sizes))
    centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    wanted = np.zeros((0, centres.shape[1]), np.float32) if asked is None else asked
    wanted = wanted / np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), 1e-12)
    seen = np.bincount(rows.cluster, minlength=len(sizes))
    order = np.argsort(-sizes, kind="stable")
    order = order[(sizes[order] > 0) & (seen[order] > 0)]
    number = np.full(len(sizes), -1)
    number[order] = np.arange(len(order))
    kept = centres[order]
    reduced = reduce(kept)
    near = neighbours(reduced)
    to_centre, to_near, to_wanted = [], [], []
    for cluster, unit in _features(data, naming, chosen):
        to_centre.append(np.einsum("nd,nd->n", unit, centres[cluster]))
        others = near[number[cluster]]
        to_near.append(np.stack([np.einsum("nd,nd->n", unit, kept[other]) for other in others.T], axis=1)
                       if others.size else np.zeros(others.shape, np.float32))  # fmt: skip
        to_wanted.append(unit @ wanted.T)
    cosine, alike = np.concatenate(to_centre).astype(np.float32), np.concatenate(to_wanted)
    cohesion = np.bincount(rows.cluster, cosine, len(sizes)) / np.maximum(seen, 1)
    by = labeller(shards, labels) if labels else Labeller("source", domain)
    named, hashes = sidecars_of(shards, rows, by.column)
    repeats = _repeats(hashes)
    again = np.zeros(len(hashes), np.bool_)
    again[np.concatenate([np.zeros(0, np.int64), *repeats])] = True
    repeated = np.bincount(rows.cluster, again, len(sizes)) / np.maximum(seen, 1)
    home = number[rows.cluster]
    ranked = np.lexsort((-cosine, home))
    start = np.searchsorted(home[ranked], np.arange(len(order) + 1))
    groups = [by.label(one) for one in named]
    return Clusters(
        cluster=order, size=sizes[order], cohesion=cohesion[order].astype(np.float32),
        repeated=repeated[order].astype(np.float32), reduced=reduced, near=near, centres=kept,
        ranked=ranked, start=start,
        group=[_most([groups[row] for row in ranked[start[p] : start[p + 1]]]) for p in range(len(order))],
        outliers=np.argsort(cosine, kind="stable")[:OUTLIERS].tolist(),
        repeats=[(len(one), one[:COPIES].tolist()) for one in repeats[:REPEATS]],
        asked=[(np.argsort(-alike[:, q], kind="stable")[:ANSWERS].tolist(),
                np.argsort(-(kept @ wanted[q]), kind="stable")[:HOMES].tolist()) for q in range(len(wanted))],
        images=int(sizes.sum()), named=total, empty=total - int((sizes > 0).sum()),
        rows=rows, cosine=cosine, alike=np.concatenate(to_near), groups=groups, again=again,
    )  # fmt: skip


def _repeats(hashes: npt.NDArray[np.uint64]) -> list[Ints]:
    """The rows that have one perceptual hash, of each that more than one has; the most first."""
    order = np.argsort(hashes, kind="stable")
    order = order[np.searchsorted(hashes[order], 1) :]  # 0 is none
    sets = np.split(order, np.flatnonzero(np.diff(hashes[order])) + 1)
    return sorted((rows for rows in sets if len(rows) > 1), key=len, reverse=True)


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


def columns_of(shards: ShardSet, rows: Sample, columns: Sequence[str]) -> pa.Table:
    """These columns of the sidecars, a row for each of the sample, a sidecar read once."""
    numbers = {path: number for number, path in enumerate(shards.paths)}
    by_shard: defaultdict[str, list[int]] = defaultdict(list)
    for row, path in enumerate(rows.shard):
        by_shard[path].append(row)
    if strange := by_shard.keys() - numbers.keys():
        path = min(strange)
        raise UserError(f"{shards.store.url}: has no shard {path}, which the embeddings are of; give their --data")
    tables = [shards.sidecar(numbers[path], list(columns)).take(rows.index[at]) for path, at in by_shard.items()]
    at = np.concatenate([np.zeros(0, np.int64), *map(np.array, by_shard.values())])
    return pa.concat_tables(tables, promote_options="permissive").take(np.argsort(at))


def sidecars_of(shards: ShardSet, rows: Sample, column: str) -> tuple[list[str], npt.NDArray[np.uint64]]:
    """What stands in a column and the perceptual hash (0: none) of each image."""
    table = columns_of(shards, rows, list({column, "phash"}))
    named = ["" if one is None or one != one else str(one) for one in table[column].to_pylist()]  # NaN is no label
    return named, table["phash"].fill_null(0).to_numpy()


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
