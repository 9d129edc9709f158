"""Which images of a shard set to keep: balanced over clusters of clusters, without semantic duplicates.

OUT/keep.parquet      key, shard, index, cluster, group, repeats (per epoch): of the images to train on
OUT/exclude.parquet   the same of all others, with why (duplicate, surplus), the key of what a duplicate repeats, and
                      its cosine to the nearest earlier image; for seer-ingest exclude
OUT/repeats.parquet   where images may be repeated: all that do not come once, for data.repeats
OUT/                  also what `cluster` writes, of the lowest level

``cluster`` is of the lowest level, ``group`` of the highest. Images that the set excludes are in neither file.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from seer_pipe.data.order import Ints
from seer_pipe.data.repeats import Repeats, write_repeats
from seer_pipe.distributed.world import join
from seer_pipe.errors import UserError
from seer_pipe.evaluate.balance import allot, ancestors, choose, default_levels, default_target, hierarchy
from seer_pipe.evaluate.centroids import read_centroids
from seer_pipe.evaluate.cluster import ITERATIONS, cluster, embedded
from seer_pipe.evaluate.duplicates import COSINES, Duplicates, coarsest, duplicates, nearest_earlier, thresholds
from seer_pipe.evaluate.embeddings import (
    clusters_of,
    feature_map,
    numbers_of,
    open_clusters,
    open_embeddings,
    rows_of,
    weights_of,
)
from seer_pipe.shards import ShardSet

PIECE = 1 << 16  # rows at once, for their mean
ROWS = pa.schema([("key", pa.string()), ("shard", pa.string()), ("index", pa.int32()), ("cluster", pa.int32()),
                  ("group", pa.int32())])  # fmt: skip
KEPT = ROWS.append(pa.field("repeats", pa.int32()))
LEFT = (
    ROWS.append(pa.field("why", pa.string()))
    .append(pa.field("of", pa.string()))
    .append(pa.field("cosine", pa.float32()))
)


@dataclass(frozen=True)
class Curation:
    """Of each image of a file of embeddings, in its order, [n]."""

    embeddings: Path
    data: str  # the shard set
    levels: list[int]  # clusters of each level, the lowest first
    cluster: Ints  # of the lowest level
    group: Ints  # of the highest
    duplicates: Duplicates
    times: Ints  # that it comes in an epoch

    @property
    def kept(self) -> npt.NDArray[np.bool_]:
        return self.times > 0

    def groups(self) -> tuple[Ints, Ints]:
        """Images of each group, and how many an epoch has of it."""
        had = np.bincount(self.group)
        return had, np.bincount(self.group, self.times, len(had)).astype(np.int64)

    def summary(self) -> dict[str, Any]:
        repeated = int(self.duplicates.found.sum())
        left = {"duplicates": repeated, "surplus": len(self.kept) - repeated - int(self.kept.sum())}
        counts = {"images": len(self.times), "kept": int(self.kept.sum()), "images_per_epoch": int(self.times.sum())}
        return {**counts, "left_out": left, "levels": self.levels}


def curate(
    source: Path,
    data: str | None,
    out: Path,
    *,
    keep: int | None = None,
    threshold: float | None = None,
    repeats: int = 1,
    say: Callable[[str], None] = lambda _: None,
) -> Curation | None:
    """Choose the images of a set to keep, and write them into folder ``out``; None but on the first rank.

    ``source``, ``data``: as `embedded` takes them. ``keep``: how many images an epoch has; by default so many that
    no group gives more than the median one holds. ``repeats``: how often an epoch may have an image, where its group
    has too few. ``threshold``: the cosine of centred features above which two images are one; by default 0.9, or more
    in a group of which more than half would be duplicates.
    The same features give the same choice.
    """
    with join() as world:
        file, data = embedded(source, data, out, say)
        world.barrier()  # the first rank has put the parts together
        images = open_embeddings(file).metadata.num_rows
        if images * repeats < (keep or 2):
            raise UserError(f"{file}: has {images} images, too few to keep {keep or 'some'} of; give fewer by --keep, "
                            "or more --repeats")  # fmt: skip
        levels = default_levels(images)
        named = cluster(file, out, levels[0], world=world, say=say)
        if not world.is_first:
            return None
        device = world.device
    centroids = read_centroids(out, weights_of(file)).matrix
    lowest = np.concatenate(list(clusters_of(open_clusters(named))))
    sizes = np.bincount(lowest, minlength=levels[0])
    parents = hierarchy(centroids.to(device), levels[1:], seed=0)
    say(f"clusters of clusters: {', '.join(map(str, levels))}")
    opened = open_embeddings(file)
    rows = feature_map(opened, list(range(opened.num_row_groups)), out, unit=True)
    mean = torch.stack([piece.double().sum(0) for piece in rows.split(PIECE)]).sum(0) / images
    within = coarsest(sizes, parents, float(images) * levels[0] * ITERATIONS)  # no more work than the k-means was
    nearest, cosine = nearest_earlier(rows, mean.float(), within[lowest], device)
    group = ancestors(levels[0], parents)[-1]
    asked = thresholds(cosine, group[lowest]) if threshold is None else np.full(group.max() + 1, threshold)
    repeated = duplicates(nearest, cosine, asked[group[lowest]])
    say(f"duplicates: {int(repeated.found.sum())} of {images}, sought within {len(np.unique(within))} clusters")
    more = asked[asked > COSINES[0]]
    if threshold is None and len(more):
        there = dict.fromkeys(f"{above:g}" for above in (more.min(), more.max()))
        say(
            f"{len(more)} of {len(asked)} groups would lose more than half of their images as duplicates at "
            f"{COSINES[0]:g}, as where features tell little apart: there the cosine asked for is {' to '.join(there)}; "
            "--duplicates sets one for all"
        )
    rng = np.random.default_rng(0)
    single = np.where(repeated.found, -1, lowest)
    left = np.bincount(single[single >= 0], minlength=levels[0])
    target = default_target(left, parents, repeats) if keep is None else keep
    taken = allot(left * repeats, parents, target, rng)
    found = Curation(file, data, levels, lowest, group[lowest], repeated, choose(single, taken, rng))
    _write(found, out)
    if repeats > 1:
        _write_repeats(found, out / "repeats.parquet")
    return found


def _write(found: Curation, out: Path) -> None:
    """The two lists, a row group at a time."""
    opened = open_embeddings(found.embeddings)
    firsts = np.unique(found.duplicates.first[found.duplicates.found])
    keys = rows_of(opened, firsts, ["key"])["key"]
    partial = {name: out / f".{name}.parquet" for name in ("keep", "exclude")}
    start = 0
    with (
        pq.ParquetWriter(partial["keep"], KEPT, compression="zstd") as keep,
        pq.ParquetWriter(partial["exclude"], LEFT, compression="zstd") as exclude,
    ):
        for group in range(opened.num_row_groups):
            table = opened.read_row_group(group, ["key", "shard", "index"])
            here = slice(start, start + table.num_rows)
            for name, column in (("cluster", found.cluster), ("group", found.group)):
                table = table.append_column(name, pa.array(column[here], pa.int32()))
            kept, first = found.kept[here], found.duplicates.first[here]
            times = pa.array(found.times[here], pa.int32())
            keep.write_table(table.append_column("repeats", times).filter(kept).cast(KEPT))
            repeats = pa.array(np.searchsorted(firsts, first), mask=first < 0)
            cosine = pa.array(found.duplicates.cosine[here], mask=first < 0)
            why = pa.array(np.where(first < 0, "surplus", "duplicate"))
            for name, values in (("why", why), ("of", keys.take(repeats)), ("cosine", cosine)):
                table = table.append_column(name, values)
            exclude.write_table(table.filter(~kept).cast(LEFT))
            start = here.stop
    for name, file in partial.items():
        file.replace(out / f"{name}.parquet")


def _write_repeats(found: Curation, file: Path) -> None:
    """How often each image comes, by its number in the set."""
    shards, opened = ShardSet.open(found.data), open_embeddings(found.embeddings)
    numbers = []
    for group in range(opened.num_row_groups):
        table = opened.read_row_group(group, ["shard", "index"])
        numbers.append(numbers_of(shards, table["shard"].to_pylist(), table["index"].to_numpy()))
    sample = np.concatenate(numbers)
    order = np.argsort(sample)
    write_repeats(file, shards, Repeats(sample[order], found.times[order]))
