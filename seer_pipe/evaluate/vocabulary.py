"""The classes of a shard set's images from what stands beside them, found out of core; `targets.py` has their form.

One label an image, a column or the folder, or any number of tags: the words of a column of text, or the elements of
one of lists. Tags are lowercased, synonyms replaced, stop words left out; what too few images have is no class.

OUT/repeats.parquet   for data.repeats: images without a class do not come; with ``threshold`` those of a class that
                      fewer images have come more often: r = max over their classes of max(1, sqrt(threshold / images)),
                      rounded up or down at random so that r is the mean (Mahajan et al. 2018, arXiv 1805.00932)
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seer_pipe.data.order import Ints
from seer_pipe.data.random import derive_key, uniform
from seer_pipe.data.repeats import Repeats, write_repeats
from seer_pipe.errors import UserError
from seer_pipe.evaluate.labels import labeller
from seer_pipe.evaluate.table import read_pairs
from seer_pipe.objectives.targets import ABOUT, CLASSES, STARTS, VOCABULARY
from seer_pipe.shards import ShardSet

PIECE = 1 << 20  # samples at once
WORDS = r"[\p{L}\p{M}\p{N}_]+"


@dataclass(frozen=True)
class Rules:
    """Which tags become classes."""

    least: int = 1  # images that have it
    most: int | None = None  # classes: the most frequent
    stop: frozenset[str] = frozenset()
    synonyms: Mapping[str, str] | None = None  # what each is replaced by


def read_rules(least: int, most: int | None, stop: Path | None, synonyms: Path | None, *, tags: bool) -> Rules:
    """With the stop list, a tag a line, and the rows tag,of of the synonyms; UserError where a file cannot be read."""

    def form(tag: str) -> str:
        return tag.strip().lower() if tags else tag.strip()

    try:
        stopped = "" if stop is None else stop.read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{stop}: not readable: {error}") from None
    pairs = {} if synonyms is None else read_pairs(synonyms, ("tag", "of"))[1]
    words = frozenset(map(form, stopped.splitlines())) - {""}
    return Rules(least, most, words, {form(tag): form(of) for tag, of in pairs.items()})


def write_vocabulary(
    root: str,
    out: Path,
    *,
    labels: str | None = None,
    tags: str | None = None,
    rules: Rules = Rules(),
    threshold: float = 1,
    memory: int = 3 << 30,
) -> dict[str, Any]:
    """Write the classes of a set's images into folder ``out``, and return what they are in numbers.

    Exactly one of ``labels``, as evaluations take them, and ``tags``, a column of the sidecars. ``memory``: bytes that
    DuckDB may take; the disk serves beyond. UserError where there are fewer than two classes.
    """
    if (labels is None) == (tags is None):
        raise UserError("give either --labels (one of each image) or --tags (any number)")
    shards = ShardSet.open(root)
    out.mkdir(parents=True, exist_ok=True)
    (out / ABOUT).unlink(missing_ok=True)
    with (
        tempfile.TemporaryDirectory(prefix=".vocabulary-", dir=out) as folder,
        duckdb.connect(Path(folder, "tags.db")) as db,
    ):
        db.execute(f"SET memory_limit = '{memory} B'; SET preserve_insertion_order = false")
        db.execute("CREATE TABLE found (sample BIGINT, tag VARCHAR)")
        if labels is not None:
            _load_labels(db, shards, labels)
        else:
            _load_tags(db, shards, str(tags))
        _choose(db, rules)
        found = db.execute("SELECT class, tag, images FROM vocabulary ORDER BY class").fetchnumpy()
        classes = len(found["tag"])
        if classes < 2:
            raise UserError(f"{labels or tags}: gives {classes} classes of {rules.least} images or more; 2 are needed")
        pq.write_table(pa.table({name: pa.array(column) for name, column in found.items()}), out / VOCABULARY)
        about, times = _write_targets(db, shards, out, np.asarray(found["images"]), threshold)
    about |= {"classes": classes, "of": labels or tags}
    write_repeats(out / "repeats.parquet", shards, Repeats(np.arange(len(times)), times))
    (out / ABOUT).write_text(json.dumps(about))  # last: what has none is no vocabulary
    kept = np.setdiff1d(np.arange(len(times)), shards.excluded)
    return {
        "images": len(kept), "with_a_class": int((times[kept] > 0).sum()), "classes": classes,
        "most_of_an_image": about["most"], "images_per_epoch": int(times[kept].sum()), "vocabulary": str(out),
    }  # fmt: skip


def _count(db: duckdb.DuckDBPyConnection, table: str) -> int:
    return int(db.execute(f"SELECT count(*) FROM {table}").fetchall()[0][0])


def _load_labels(db: duckdb.DuckDBPyConnection, shards: ShardSet, labels: str) -> None:
    by = labeller(shards, labels)
    for shard in range(len(shards.paths)):
        values = shards.sidecar(shard, [by.column])[by.column].to_pylist()
        # a number that is none is no label: it is what tables have where nothing was written
        named = ["" if value is None or value != value else by.label(str(value)) for value in values]
        _insert(db, shards, shard, pa.array(named, pa.string()), "trim(value)")


def _load_tags(db: duckdb.DuckDBPyConnection, shards: ShardSet, column: str) -> None:
    columns = shards.sidecar(0).column_names if shards.paths else []
    if column not in columns:
        raise UserError(f"{column!r}: no column of {shards.store.url} (it has {', '.join(columns)})")
    for shard in range(len(shards.paths)):
        values = shards.sidecar(shard, [column])[column]
        listed = pa.types.is_list(values.type) or pa.types.is_large_list(values.type)
        each = "value" if listed else f"regexp_extract_all(value::VARCHAR, '{WORDS}')"
        _insert(db, shards, shard, values, f"lower(trim(unnest({each})::VARCHAR))")


def _insert(db: duckdb.DuckDBPyConnection, shards: ShardSet, shard: int, values: pa.Array, tag: str) -> None:
    """What the expression ``tag`` makes of the values of a shard's samples that are not excluded."""
    sample = np.arange(shards.starts[shard], shards.starts[shard + 1])
    rows = pa.table({"sample": sample, "value": values})
    db.register("rows", rows.filter(pa.array(~np.isin(sample, shards.excluded))))
    db.execute(f"INSERT INTO found SELECT sample, {tag} FROM rows")


def _choose(db: duckdb.DuckDBPyConnection, rules: Rules) -> None:
    """The tables vocabulary (class, tag, images) and targets (sample, class)."""
    pairs = rules.synonyms or {}
    names = pa.table([pa.array(pairs.keys(), pa.string()), pa.array(pairs.values(), pa.string())], ["tag", "meant"])
    db.register("synonyms", names)
    db.register("stop", pa.table({"tag": pa.array(sorted(rules.stop), pa.string())}))
    db.execute(f"""
        CREATE TABLE tags AS
            SELECT DISTINCT sample, coalesce(synonyms.meant, found.tag) AS tag
            FROM found LEFT JOIN synonyms ON found.tag = synonyms.tag;
        DROP TABLE found;
        CREATE TABLE vocabulary AS
            SELECT row_number() OVER (ORDER BY images DESC, tag) - 1 AS class, tag, images
            FROM (SELECT tag, count(*) AS images FROM tags ANTI JOIN stop USING (tag) WHERE tag <> '' GROUP BY tag)
            WHERE images >= {rules.least}
            ORDER BY class LIMIT {"ALL" if rules.most is None else rules.most};
        CREATE TABLE targets AS SELECT sample, class FROM tags JOIN vocabulary USING (tag) ORDER BY sample;
        DROP TABLE tags
    """)


def _write_targets(
    db: duckdb.DuckDBPyConnection, shards: ShardSet, out: Path, images: Ints, threshold: float
) -> tuple[dict[str, Any], Ints]:
    """Write the two arrays, a piece at a time, of classes that so many ``images`` [C] have; what they are, and how
    often each sample comes in an epoch, [samples]."""
    digest, at, samples = hashlib.sha256(shards.fingerprint.encode()), 0, len(shards)
    classes = np.lib.format.open_memmap(out / CLASSES, "w+", np.int32, (_count(db, "targets"),))
    starts = np.lib.format.open_memmap(out / STARTS, "w+", np.int64, (samples + 1,))
    repeats, times, most = np.sqrt(np.maximum(1, threshold / images)), np.zeros(samples, np.int64), 0
    for first in range(0, samples, PIECE):
        stop = min(first + PIECE, samples)
        rows = db.execute(
            "SELECT sample, class FROM targets WHERE sample >= ? AND sample < ? ORDER BY sample, class", [first, stop]
        ).fetchnumpy()
        sample, number = np.asarray(rows["sample"]), np.asarray(rows["class"])
        classes[at : at + len(number)] = number
        count = np.bincount(sample - first, minlength=stop - first)
        starts[first + 1 : stop + 1] = at + np.cumsum(count)
        digest.update(sample.tobytes() + number.tobytes())
        at, most = at + len(number), max(most, int(count.max()))
        exact = np.zeros(stop - first)
        np.maximum.at(exact, sample - first, repeats[number])
        times[first:stop] = np.floor(exact + uniform(derive_key(0, np.arange(first, stop)), 0))
    for array in (classes, starts):
        array.flush()
    about = {"shards": shards.fingerprint, "samples": samples, "most": most, "sha256": digest.hexdigest()}
    return about, times
