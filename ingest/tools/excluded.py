"""The list of samples that are excluded from training; no shard is rewritten.

    ROOT/excluded.parquet   a row an excluded sample, in the order of the set: its number in the set, its key,
                            the number of the earlier sample ``of`` that it repeats, and their ``distance`` in bits
                            of the perceptual hash (null where the bytes are the same)

``dedup`` and ``exclude`` both write it, and neither takes away what the other has put there: where ``of`` is null, a
person has excluded the sample by its key. To start over, delete the file.
"""

from __future__ import annotations

import os
import tempfile
from itertools import pairwise
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.files import expand
from ingest.sources.lists import SUFFIXES, tables
from seer_pipe.errors import UserError
from seer_pipe.shards import EXCLUDED, FINGERPRINT_KEY, ShardSet

EXCLUDED_SCHEMA = pa.schema([("sample", pa.int64()), ("key", pa.string()), ("of", pa.int64()), ("distance", pa.int8())])
SHOWN = 3  # keys named in an error
Samples = npt.NDArray[np.int64]
Name = tuple[str, str | None]  # key of a sample; path of its shard, where that is given


def exclude(root: str | os.PathLike[str], keys: str) -> tuple[int, int]:
    """Exclude the samples whose keys are listed; how many these are, and how many are excluded by now.

    ``keys``: a text file of keys, one per line, or a CSV, TSV, JSONL or Parquet file with a column ``key`` and, where
    shards of different origin use the same keys, a column ``shard`` (the tar's path in the manifest). UserError where
    there is no set, and where a key is of no sample or of several; nothing is excluded then.
    """
    shards = ShardSet.open(root)
    rows = read(shards)
    named = find(shards, listed(keys), keys)
    rows = merged(rows, np.union1d(by_hand(rows), named))
    write(shards, rows)
    return len(named), rows.num_rows


def listed(keys: str) -> set[Name]:
    """What the list or lists ``keys`` name."""
    found: set[Name] = set()
    for file in expand(keys, SUFFIXES):
        for columns in (["key", "shard"], ["key"]):
            known: set[str] = set()
            try:
                for table in tables(file, columns, [pa.string()] * len(columns), known):
                    shard = table[1].to_pylist() if "shard" in columns else [None] * table.num_rows
                    found.update(zip(table[0].to_pylist(), shard, strict=True))
                break
            except UserError:  # there is no such column
                if columns == ["key"]:
                    raise
    return found


def find(shards: ShardSet, wanted: set[Name], where: str) -> Samples:
    """The numbers of the samples that ``where`` names as ``wanted``; UserError where that is none, or several."""
    keys = pa.array({key for key, _ in wanted}, pa.string())
    found: dict[Name, list[int]] = {name: [] for name in wanted}
    first = 0
    for shard, path in enumerate(shards.paths):
        column = shards.sidecar(shard, ["key"])["key"]
        for place in np.flatnonzero(pc.is_in(column, value_set=keys)).tolist():
            key = column[place].as_py()
            for name in ((key, path), (key, None)):
                if name in found:
                    found[name].append(first + place)
        first += len(column)
    for what, some in (
        ("of no sample of the set", [name for name in wanted if not found[name]]),
        ("of several samples; give their shards too, in a column shard,", [n for n in wanted if len(found[n]) > 1]),
    ):
        if some:
            shown = ", ".join(repr("/".join(filter(None, name[::-1]))) for name in sorted(some, key=str)[:SHOWN])
            more = ", …" if len(some) > SHOWN else ""
            count = f"{len(some)} of {len(wanted)} keys"
            raise UserError(f"{where}: {count} are {what} at {shards.store.url}: {shown}{more}")
    return np.unique(np.array([sample for samples in found.values() for sample in samples], np.int64))


def read(shards: ShardSet) -> pa.Table:
    """The list as it stands, of no rows where there is none. UserError where it is of another set."""
    url = f"{shards.store.url}/{EXCLUDED}"
    try:
        found = pq.read_table(pa.BufferReader(shards.store.get(EXCLUDED)))
    except FileNotFoundError:
        return EXCLUDED_SCHEMA.empty_table()
    except pa.ArrowException as error:
        raise UserError(f"{url}: not readable: {error}") from None
    if (found.schema.metadata or {}).get(FINGERPRINT_KEY) != shards.fingerprint.encode():
        raise UserError(f"{url}: was made when the set was another one; delete it and exclude again")
    return found


def by_hand(rows: pa.Table) -> Samples:
    """The samples that a person has excluded."""
    return rows.filter(pc.is_null(rows["of"]))["sample"].to_numpy()


def merged(rows: pa.Table, samples: Samples) -> pa.Table:
    """``rows`` (sample, of, distance), and ``samples`` excluded by hand; what is both is by hand."""
    hand = pa.array(samples, pa.int64())
    rest = rows.filter(pc.invert(pc.is_in(rows["sample"], value_set=hand)))
    nothing = pa.nulls(len(hand))
    added = pa.table({"sample": hand, "of": nothing, "distance": nothing})
    schema = pa.schema([EXCLUDED_SCHEMA.field(name) for name in added.column_names])
    both = pa.concat_tables([rest.select(schema.names).cast(schema), added.cast(schema)])
    return both.sort_by("sample")


def write(shards: ShardSet, rows: pa.Table) -> None:
    """Write the list of ``rows`` (sample, of, distance), which are in the order of the set."""
    schema = EXCLUDED_SCHEMA.with_metadata({FINGERPRINT_KEY: shards.fingerprint})
    samples = rows["sample"].to_numpy()
    with tempfile.TemporaryDirectory(prefix="excluded-") as folder:
        local = Path(folder, EXCLUDED)
        with pq.ParquetWriter(local, schema, compression="zstd") as writer:
            for shard, (start, stop) in enumerate(pairwise(np.searchsorted(samples, shards.starts).tolist())):
                if start < stop:
                    keys = shards.sidecar(shard, ["key"])["key"].take(samples[start:stop] - shards.starts[shard])
                    part = rows.slice(start, stop - start).append_column("key", keys)
                    writer.write_table(part.select(schema.names).cast(schema))
        shards.store.put_file(EXCLUDED, local)
