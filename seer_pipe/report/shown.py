"""The images that an atlas shows: which, where they stand on its map, and what they can be coloured and found by."""

from __future__ import annotations

import itertools
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seer_pipe.data.order import Ints
from seer_pipe.report import layout
from seer_pipe.report.clusters import Clusters, Sample, columns_of
from seer_pipe.report.ingested import domain
from seer_pipe.report.words import names
from seer_pipe.shards import ShardSet

TEXTS = ("caption", "text", "alt", "title", "description")  # columns of a sidecar that say what a picture shows
DATE = "date"  # the one that says when it was found
ISO_DAY = re.compile(r"\d{4}-\d\d-\d\d")
NAMED, OTHER, NONE = 8, 254, 255  # labels with a colour of their own; in a column of levels: one more, and none
TEXT = 160  # characters of what an image is shown with
Levels = npt.NDArray[np.uint8]


@dataclass
class Column:
    """What images can be coloured by: 0 to 253 by rank, or places in ``names``; OTHER; NONE where it is not known."""

    id: str
    level: Levels  # [n]
    names: list[str] | None = None  # of labels
    ends: tuple[str, str, str] | None = None  # of numbers: the lowest, the middle one, the highest


@dataclass
class Shown:
    """Images in the order of their clusters, the nearest to the centre first."""

    rows: Ints  # [n] of the sample
    start: Ints  # [k + 1] where those of each cluster begin
    cell: Ints  # [n, 2] on the map, each alone in its own
    disc: npt.NDArray[np.float64]  # [k, 3] where each cluster stands, and its radius, in cells
    top: Levels  # [n] coarsest level of the map that shows it
    levels: int  # of the map: level 0 is one tile
    text: list[str]  # [n] what is known of each in words
    title: list[str]  # [k] names of clusters by words
    columns: list[Column]


def shown(found: Clusters, shards: ShardSet, most: int, least: int, labels: str | None, tile: int) -> Shown:
    """Choose about ``most`` images, ``least`` of each cluster at least where it has them, and lay them out.

    ``tile``: cells of a tile a side. The columns that need the pixels are still to be added.
    """
    forced = [*found.outliers, *(row for _, copies in found.repeats for row in copies),
              *(row for answers, _ in found.asked for row in answers)]  # fmt: skip
    rows, start = choose(found.ranked, found.start, most, least, np.array(forced, np.int64))
    count = np.diff(start)
    home = np.repeat(np.arange(len(count)), count)
    radius = layout.radii(count)
    disc = layout.spread(layout.lay_out(found.reduced), radius)
    angle = layout.towards(found.alike[rows], home, found.near, disc)
    cell, origin = layout.cells(layout.targets(disc, count, angle), np.arange(len(rows)) - start[home])
    tops, levels = coarsest(cell, priority(start), tile)
    sample = Sample([found.rows.key[row] for row in rows], [found.rows.shard[row] for row in rows],
                    found.rows.index[rows], found.rows.cluster[rows])  # fmt: skip
    there = shards.sidecar(0).column_names
    wanted = ["source", "width", "height", *(name for name in (*TEXTS, DATE) if name in there)]
    table = columns_of(shards, sample, wanted)
    text, title = _texts(table, start)
    hosts = [domain(source) for source in table["source"].to_pylist()]
    side = np.sqrt(table["width"].to_numpy().astype(np.float64) * table["height"].to_numpy())
    columns = [] if labels is None else [labelled("label", [found.groups[row] for row in rows])]
    columns += [labelled("domain", hosts), Column("repeated", np.where(found.again[rows], 253, 0).astype(np.uint8)),
                numbers("size", side, lambda value: f"{value:.0f} px"),
                numbers("typical", found.cosine[rows].astype(np.float64), lambda value: f"{value:.2f}")]  # fmt: skip
    if DATE in wanted:
        columns.append(numbers("date", *_days(table[DATE])))
    return Shown(rows, start, cell, np.column_stack([disc - origin, radius]), tops, levels, text, title, columns)


def choose(ranked: Ints, start: Ints, most: int, least: int, forced: Ints) -> tuple[Ints, Ints]:
    """Of ranked images, those of clusters behind one another: about ``most``, the first ``least`` of each cluster and
    others evenly over its ranks, and those that are ``forced``; with where those of each begin."""
    share = most / max(len(ranked), 1)
    is_forced = np.isin(ranked, forced)
    chosen, begins = [], [0]
    for first, stop in zip(start[:-1].tolist(), start[1:].tolist(), strict=True):
        count = stop - first
        head = np.arange(min(count, least))
        rest = max(round(share * count) - len(head), 0)
        ranks = [head, np.linspace(len(head), count - 1, rest).astype(np.int64), np.flatnonzero(is_forced[first:stop])]
        own = np.unique(np.concatenate(ranks)) if share < 1 else np.arange(count)
        chosen.append(ranked[first + own])
        begins.append(begins[-1] + len(own))
    return np.concatenate(chosen), np.array(begins)


def priority(start: Ints) -> Ints:
    """[n] 0 for the image that stands for as many as are shown together: the nearest to its centre, of the largest
    cluster, as clusters stand in the order of their size."""
    home = np.repeat(np.arange(len(start) - 1), np.diff(start))
    rank = np.arange(start[-1]) - start[home]
    found = np.empty(len(rank), np.int64)
    found[np.lexsort((home, rank))] = np.arange(len(rank))
    return found


def coarsest(cell: Ints, rank: Ints, tile: int) -> tuple[Levels, int]:
    """The coarsest level [n] that shows each image, and how many there are. A cell of a level is four of the next one,
    and shows the image of them with the lowest rank; the finest shows all, and the coarsest is one tile."""
    side = int(cell.max(initial=0)) + 1
    levels = max(0, int(np.ceil(np.log2(side / tile)))) + 1
    top = np.full(len(cell), levels - 1, np.uint8)
    by_rank = np.argsort(rank)
    for level in range(levels - 2, -1, -1):
        x, y = (cell[by_rank] >> (levels - 1 - level)).T
        _, first = np.unique(x * side + y, return_index=True)
        top[by_rank[first]] = level
    return top, levels


def labelled(name: str, labels: Sequence[str]) -> Column:
    """The commonest NAMED labels, each a level."""
    commonest = [label for label, _ in Counter(filter(None, labels)).most_common(NAMED)]
    place = {label: number for number, label in enumerate(commonest)} | {"": NONE}
    return Column(name, np.array([place.get(label, OTHER) for label in labels], np.uint8), names=commonest)


def numbers(name: str, values: npt.NDArray[np.float64], written: Any) -> Column:
    """Numbers [n] by their rank among those that are known; NaN is not. ``written``: makes text of one."""
    known = np.isfinite(values)
    order = np.sort(values[known])
    level = np.full(len(values), NONE, np.uint8)
    if not len(order):
        return Column(name, level)
    rank = (np.searchsorted(order, values[known]) + np.searchsorted(order, values[known], "right") - 1) / 2
    level[known] = np.rint(253 * rank / max(len(order) - 1, 1))
    low, middle, high = (written(order[at]) for at in (0, len(order) // 2, -1))
    return Column(name, level, ends=(low, middle, high))


def _days(column: pa.ChunkedArray) -> tuple[npt.NDArray[np.float64], Any]:
    """Days since 1970, NaN where there is no date, and what writes one; of ISO 8601 as text, or of timestamps."""

    def day(value: Any) -> float:
        text = str(value)[:10]
        try:
            return float(np.datetime64(text, "D").astype(np.int64)) if ISO_DAY.fullmatch(text) else np.nan
        except ValueError:  # of the 31st of June
            return np.nan

    days = np.array([day(value) for value in column.to_pylist()], np.float64)
    return days, lambda value: str(np.datetime64(int(value), "D"))


def _texts(table: pa.Table, start: Ints) -> tuple[list[str], list[str]]:
    """What is known of each image in words, and the names of the clusters; by file names where no column has text."""
    there = [table[name].to_pylist() for name in TEXTS if name in table.column_names]
    text = [" ".join(str(part) for part in parts if part is not None and part == part) for parts in zip(*there)]  # noqa: B905 (none at all is fine)
    sources = [PurePosixPath(source.split("?")[0]).stem for source in table["source"].to_pylist()]
    said = text if any(text) else sources
    return [one[:TEXT] for one in said], names([said[a:b] for a, b in itertools.pairwise(start)])
