"""The prototypes of a file of embeddings as clusters: sizes, centres, who is near, what they have in common.

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
from seer_pipe.evaluate.labels import Labeller, labeller
from seer_pipe.report.ingested import domain, spread
from seer_pipe.shards import ShardSet

SAMPLE = 1_000_000  # images whose features are read
OUTLIERS, NEIGHBOURS, REDUCED = 48, 6, 64  # images, prototypes, dimensions that neighbours are sought in
ANSWERS, HOMES = 12, 3  # images and prototypes nearest to a picture that is searched for
Floats = npt.NDArray[np.float32]
Ints = npt.NDArray[np.int64]


@dataclass
class Clusters:
    """Arrays of length k, one a prototype that has images in the sample, the largest first; rows are of the sample."""

    prototype: Ints
    size: Ints  # images, exact
    cohesion: Floats  # mean cosine of its images to its centre
    repeated: Floats  # share of its images that look like another of the sample
    place: Floats  # [k, 2] on the map, in [-1, 1]
    near: Ints  # [k, NEIGHBOURS] nearest prototypes, by their number here
    centres: Floats  # [k, width], of unit length
    nearest: list[list[int]]  # sample rows of the images nearest to its centre
    group: list[tuple[str, float]]  # most frequent label, or domain, and its share
    outliers: list[int]  # sample rows furthest from their centres
    asked: list[tuple[list[int], list[int]]]  # of each picture searched for: nearest sample rows, nearest prototypes
    images: int  # in the file
    prototypes: int  # that the subject has, also those that no image is nearest to
    rows: Sample


@dataclass
class Sample:
    """What is known of each image of the sample."""

    key: list[str]
    shard: list[str]
    index: Ints
    prototype: Ints


def clusters(file: Path, shards: ShardSet, labels: str | None, show: int, asked: Floats | None = None) -> Clusters:
    """Read a file of ``seer-pipe embed`` over the set ``shards``.

    ``labels``: what groups are told by, as of the evaluations; by default domains.
    ``show``: nearest images kept of each prototype; ``asked``: features [q, width] of pictures to be searched for.
    """
    data = open_embeddings(file)
    sizes = count(data)
    chosen = _sampled(data)
    rows, sums = _centres(data, chosen, len(sizes))
    centres = sums / np.maximum(np.linalg.norm(sums, axis=1, keepdims=True), 1e-12)
    wanted = np.zeros((0, centres.shape[1]), np.float32) if asked is None else asked
    wanted = wanted / np.maximum(np.linalg.norm(wanted, axis=1, keepdims=True), 1e-12)
    to_centre, to_wanted = [], []
    for proto, unit in _features(data, chosen):
        to_centre.append(np.einsum("nd,nd->n", unit, centres[proto]))
        to_wanted.append(unit @ wanted.T)
    cosine, alike = np.concatenate(to_centre).astype(np.float32), np.concatenate(to_wanted)
    seen = np.bincount(rows.prototype, minlength=len(sizes))
    order = np.argsort(-sizes, kind="stable")
    order = order[(sizes[order] > 0) & (seen[order] > 0)]
    cohesion = np.bincount(rows.prototype, cosine, len(sizes)) / np.maximum(seen, 1)
    by = labeller(shards, labels) if labels else Labeller("source", domain)
    named, hashes = _sidecars(shards, rows, by.column)
    known = hashes != 0
    _, at, times = np.unique(hashes, return_inverse=True, return_counts=True)
    again = (times[at] > 1) & known
    repeated = np.bincount(rows.prototype, again, len(sizes)) / np.maximum(seen, 1)
    by_cosine = np.lexsort((-cosine, rows.prototype))  # the rows of a prototype stand together, nearest first
    starts = np.searchsorted(rows.prototype[by_cosine], np.arange(len(sizes) + 1))
    groups = [by.label(one) for one in named]
    kept = centres[order]
    return Clusters(
        prototype=order, size=sizes[order], cohesion=cohesion[order].astype(np.float32),
        repeated=repeated[order].astype(np.float32), place=(reduced := reduce(kept))[:, :2] / _extent(reduced),
        near=neighbours(reduced), centres=kept,
        nearest=[by_cosine[starts[p] : min(starts[p] + show, starts[p + 1])].tolist() for p in order],
        group=[_most([groups[row] for row in by_cosine[starts[p] : starts[p + 1]]]) for p in order],
        outliers=np.argsort(cosine)[:OUTLIERS].tolist(), images=int(sizes.sum()), rows=rows,
        prototypes=int((data.schema_arrow.metadata or {}).get(b"seer_pipe.prototypes", len(order))),
        asked=[(np.argsort(-alike[:, q], kind="stable")[:ANSWERS].tolist(),
                np.argsort(-(kept @ wanted[q]), kind="stable")[:HOMES].tolist()) for q in range(len(wanted))],
    )  # fmt: skip


def open_embeddings(file: Path) -> pq.ParquetFile:
    """UserError where that is no file of embeddings with prototypes."""
    try:
        data = pq.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not a file of embeddings: {error}") from None
    missing = {"key", "shard", "index", "prototype", "feature"} - set(data.schema_arrow.names)
    if missing or data.metadata.num_rows == 0:
        raise UserError(f"{file}: not a file of embeddings: lacks {', '.join(sorted(missing)) or 'images'}")
    return data


def count(data: pq.ParquetFile) -> Ints:
    """Images of each prototype, all row groups."""
    sizes = np.zeros(0, np.int64)
    for group in range(data.num_row_groups):
        column = data.read_row_group(group, ["prototype"])["prototype"]
        if column.null_count:
            raise UserError("the embeddings name no prototypes: make them from a run, or from its export --format full")
        here = np.bincount(column.to_numpy())
        longer = np.zeros(max(len(here), len(sizes)), np.int64)
        longer[: len(sizes)] += sizes
        longer[: len(here)] += here
        sizes = longer
    return sizes


def _sampled(data: pq.ParquetFile) -> list[int]:
    """Row groups that hold at most SAMPLE images, at least one group."""
    largest = max(data.metadata.row_group(group).num_rows for group in range(data.num_row_groups))
    return spread(data.num_row_groups, max(1, SAMPLE // largest))


def _features(data: pq.ParquetFile, groups: list[int]) -> Iterator[tuple[Ints, Floats]]:
    """Prototypes and features of unit length, a row group at a time."""
    for group in groups:
        table = data.read_row_group(group, ["prototype", "feature"]).combine_chunks()
        flat = table["feature"].combine_chunks().flatten().to_numpy()
        feature = flat.reshape(table.num_rows, -1).astype(np.float32)
        feature /= np.maximum(np.linalg.norm(feature, axis=1, keepdims=True), 1e-12)
        yield table["prototype"].to_numpy().astype(np.int64), feature


def _centres(data: pq.ParquetFile, groups: list[int], k: int) -> tuple[Sample, Floats]:
    """What is known of each image, and the sum of the unit features of each prototype."""
    keys: list[str] = []
    paths: list[str] = []
    index, prototypes, sums = [], [], None
    for group, (proto, unit) in zip(groups, _features(data, groups), strict=True):
        table = data.read_row_group(group, ["key", "shard", "index"])
        keys += table["key"].to_pylist()
        paths += table["shard"].to_pylist()
        index.append(table["index"].to_numpy().astype(np.int64))
        prototypes.append(proto)
        sums = np.zeros((k, unit.shape[1]), np.float32) if sums is None else sums
        order = np.argsort(proto, kind="stable")
        there, first = np.unique(proto[order], return_index=True)
        sums[there] += np.add.reduceat(unit[order], first)
    assert sums is not None
    return Sample(keys, paths, np.concatenate(index), np.concatenate(prototypes)), sums


def _sidecars(shards: ShardSet, rows: Sample, column: str) -> tuple[list[str], npt.NDArray[np.uint64]]:
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
