"""The page of a curation, OUT/index.html: what was taken of a set and what was left, in numbers and in pictures."""

from __future__ import annotations

import shlex
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seer_pipe.data.order import Ints
from seer_pipe.evaluate.curate import Curation, curate
from seer_pipe.evaluate.duplicates import COSINES
from seer_pipe.evaluate.embeddings import numbers_of, open_embeddings, rows_of
from seer_pipe.evaluate.labels import Labeller, labeller
from seer_pipe.report.charts import Chart
from seer_pipe.report.clusters import SAMPLE, Sample, sidecars_of
from seer_pipe.report.ingested import domain
from seer_pipe.report.page import environment, style, write_page
from seer_pipe.report.thumbnails import data_uri, thumbnails
from seer_pipe.shards import ShardSet

GROUPS, SHOWN, REPEATED, COPIES, NAMES, SIDE = 24, 8, 24, 5, 16, 56  # of the page; SIDE in pixels
THRESHOLDS = (0.6, 0.7, 0.8, 0.85, *COSINES)


def write_curation(
    source: Path,
    out: Path,
    data: str | None = None,
    *,
    keep: int | None = None,
    threshold: float | None = None,
    repeats: int = 1,
    labels: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any] | None:
    """Curate a set as `curate` says, and draw the page; what was found, or None but on the first rank.

    ``labels``: what the page counts the images by, as in the evaluations; by default the domain they are from.
    """
    found = curate(source, data, out, keep=keep, threshold=threshold, repeats=repeats, say=say)
    if found is None:
        return None
    shards = ShardSet.open(found.data)
    summary = found.summary()
    file = out / ("exclude.parquet" if repeats == 1 else "repeats.parquet")
    command = f"seer-ingest exclude {shlex.quote(found.data)} --keys {shlex.quote(str(file))}"
    if repeats > 1:
        command = (
            f"seer-pipe train RECIPE {shlex.quote(f'data.path={found.data}')} {shlex.quote(f'data.repeats={file}')}"
        )
    page = environment().get_template("curated.html").render(
        name=shards.store.url, summary=summary, by="label" if labels else "domain", names=_names(found, shards, labels),
        chart=_chart(found), thresholds=_thresholds(found), style=style(), **_pictures(found, shards),
        command=command,
    )  # fmt: skip
    return summary | {file.stem: str(file), "page": str(write_page(page, out))}


def _chart(found: Curation) -> Chart:
    had, kept = found.groups()
    order = np.argsort(-had, kind="stable")
    series = {
        name: [(float(place), float(images)) for place, images in enumerate(column[order].tolist(), start=1)]
        for name, column in (("in the set", had), ("in an epoch", kept))
    }
    return Chart("Images of each group", "The largest group first.", series, across="group")


def _thresholds(found: Curation) -> list[list[str]]:
    """How many duplicates there would be at other thresholds."""
    return [[f"{above:g}", f"{int((found.duplicates.cosine > above).sum()):,}"] for above in THRESHOLDS]


def _sample(found: Curation, rows: Ints) -> Sample:
    table = rows_of(open_embeddings(found.embeddings), rows, ["key", "shard", "index"])
    index = table["index"].to_numpy().astype(np.int64)
    return Sample(table["key"].to_pylist(), table["shard"].to_pylist(), index, found.cluster[rows])


def _names(found: Curation, shards: ShardSet, labels: str | None) -> list[list[str]]:
    """The most frequent labels or domains with their images in the set and in an epoch; of SAMPLE images at most."""
    by = labeller(shards, labels) if labels else Labeller("source", domain)
    rows = np.unique(np.linspace(0, len(found.times) - 1, SAMPLE).astype(np.int64))
    named = [by.label(value) for value in sidecars_of(shards, _sample(found, rows), by.column)[0]]
    had = Counter(filter(None, named))
    kept: Counter[str] = Counter()
    for name, times in zip(named, found.times[rows].tolist(), strict=True):
        kept[name] += times
    return [[name, f"{count:,}", f"{kept[name]:,}"] for name, count in had.most_common(NAMES)]


def _pictures(found: Curation, shards: ShardSet) -> dict[str, Any]:
    """The groups that lost most with some images taken and left, and images with what repeats them."""
    had, kept = found.groups()
    surplus = ~found.kept & ~found.duplicates.found
    groups = [
        (int(had[group]), int(kept[group]), [np.flatnonzero((found.group == group) & mask)[:SHOWN] for mask in
                                             (found.kept, surplus)])
        for group in np.argsort(kept - had, kind="stable")[:GROUPS].tolist()
    ]  # fmt: skip
    repeats = np.flatnonzero(found.duplicates.found)
    firsts, times = np.unique(found.duplicates.first[repeats], return_counts=True)
    repeated = [
        (int(times[place]), firsts[place], repeats[found.duplicates.first[repeats] == firsts[place]][:COPIES])
        for place in np.argsort(-times, kind="stable")[:REPEATED].tolist()
    ]
    wanted = np.unique(np.concatenate([rows for *_, some in groups for rows in some] +
                                      [np.append(copies, first) for _, first, copies in repeated]))  # fmt: skip
    shown = _drawn(found, shards, wanted)

    def pictures(rows: Sequence[int] | Ints) -> list[tuple[str, str]]:
        return [shown[row] for row in np.asarray(rows).tolist() if row in shown]

    return {
        "groups": [(before, after, *map(pictures, some)) for before, after, some in groups],
        "repeated": [(count, pictures([first]), pictures(copies)) for count, first, copies in repeated],
    }


def _drawn(found: Curation, shards: ShardSet, rows: Ints) -> dict[int, tuple[str, str]]:
    """The key and the picture of each row that can be read."""
    sample = _sample(found, rows)
    numbers = numbers_of(shards, sample.shard, sample.index).tolist()
    small = thumbnails(shards, numbers, SIDE)
    return {
        row: (key, data_uri(small[number]))
        for row, key, number in zip(rows.tolist(), sample.key, numbers, strict=True)
        if number in small
    }
