"""The work, laid down before it begins: which inputs there are, and which of them make which shard.

    ROOT/inputs.parquet   all inputs, in order or shuffled; a row group is a unit of work and makes one shard
    ROOT/ingest.json      what the run is: its input, its settings, and the number of units

Both are written once, ``ingest.json`` last. A later command with another input or other settings is refused.
"""

from __future__ import annotations

import hashlib
import json
import sys
import tempfile
import time
from array import array
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from threading import Lock
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.shuffle import shuffled
from ingest.sources import KEPT, Source
from seer_pipe.errors import UserError
from seer_pipe.shards import MANIFEST, rejected_path, sidecar_path
from seer_pipe.share import ALL, Share
from seer_pipe.store import FolderStore, Store, holding, open_in

VERSION = 2
LOOK = 1.0  # seconds between two looks for a plan that another makes
TEMPORARY = FolderStore.TEMPORARY  # what a killed run leaves behind begins so
INPUTS, ABOUT = "inputs.parquet", "ingest.json"
UNIT_BYTES = 1 << 30  # of inputs, where sizes are known beforehand: a shard is not to grow without bounds
DUPLICATE = "duplicate"  # column: whether the same source stands in an earlier row
_READING = Lock()  # one file takes no two reads at once: pyarrow keeps the ranges of a read in it


@dataclass(frozen=True)
class UnitPlan:
    store: Store
    inputs: int
    units: int
    in_place: bool = False  # the shards are tars that exist; only sidecars are written
    media: str = "image"  # what the samples are: image, video, audio or pair

    def __getstate__(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in fields(self)}  # without the open file

    @cached_property
    def _file(self) -> pq.ParquetFile:
        return pq.ParquetFile(self.store.local_path(INPUTS) or open_in(self.store, INPUTS))

    def _read(self, unit: int, names: Sequence[str]) -> pa.Table:
        with _READING:
            return self._file.read_row_group(unit, names, use_threads=False)

    def shard(self, unit: int) -> str:
        """Path of the unit's tar as the manifest has it: within the store, or absolute or a URL."""
        if not self.in_place:
            return f"{unit:05d}.tar"
        name: bytes = self._read(unit, ["file"])["file"][0].as_py()
        try:
            file = name.decode()
        except UnicodeDecodeError:
            raise UserError(f"{name!r}: a shard set can only name files whose names are UTF-8; rename it") from None
        file = file if "://" in file else str(Path(file).absolute())
        return file.removeprefix(self.store.url + "/")

    def sidecar(self, unit: int) -> str:
        # beside a tar of other making there may be a parquet file of its name
        return f"index/{unit:05d}.parquet" if self.in_place else sidecar_path(self.shard(unit))

    def rejected(self, unit: int) -> str:
        return rejected_path(f"{unit:05d}.tar")

    def size(self, unit: int) -> int:
        """Number of inputs of a unit."""
        return int(self._file.metadata.row_group(unit).num_rows)

    def rows(self, unit: int) -> list[dict[str, Any]]:
        """The inputs of a unit, without the columns that are kept."""
        names = [name for name in self._file.schema_arrow.names if not name.startswith(KEPT)]
        rows: list[dict[str, Any]] = self._read(unit, names).to_pylist()
        return rows

    def kept(self, unit: int, places: Sequence[int]) -> pa.Table | None:
        """The kept columns of those inputs of a unit, by their names in the sidecar; None where there are none."""
        names = [name for name in self._file.schema_arrow.names if name.startswith(KEPT)]
        if not names:
            return None
        table = self._read(unit, names).select(names)
        return table.take(pa.array(places, pa.int64())).rename_columns([name.removeprefix(KEPT) for name in names])


def open_plan(store: Store) -> tuple[UnitPlan, dict[str, Any]] | None:
    """The plan in ``store`` and what it is for; None where there is none yet."""
    try:
        about = json.loads(store.get(ABOUT))
        if about["version"] != VERSION:
            raise UserError(
                f"{store.url}/{ABOUT}: version {about['version']}; this seer-ingest resumes {VERSION}: "
                "finish it with the one that began it, or use another --out"
            )
        return plan_of(store, about), about
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (KeyError, TypeError, ValueError) as error:
        if isinstance(error, UserError):
            raise
        raise UserError(f"{store.url}/{ABOUT}: not readable: {error}") from None


def prepare(
    source: Source, store: Store, settings: Mapping[str, Any], unit: int | None, share: Share = ALL
) -> tuple[UnitPlan, bool]:
    """The plan for ``source`` in ``store``, made if there is none; whether it was there already.

    ``unit`` is the number of inputs of a unit; None where each table of the source is one. Of several shares the first
    makes the plan, and the others wait for it: so the inputs are listed once, and there cannot be two lists.
    """
    wanted = json.loads(json.dumps({"input": source.identity, "settings": settings}))
    found = open_plan(store)
    if found is None and share.number > 0:
        print(f"waiting for share 0/{share.of}, which lists the inputs", file=sys.stderr, flush=True)
        while (found := open_plan(store)) is None:
            time.sleep(LOOK)
    if found is not None:
        plan, about = found
        if different := differences(about, wanted):
            raise UserError(f"{store.url}: was begun with another {different}; use another --out")
        return plan, True
    if store.size(MANIFEST) is not None:
        raise UserError(f"{store.url}: holds a shard set that was made in another way; use another --out")
    counts = write_inputs(source, store, unit, bool(settings.get("shuffle")))
    if not counts:
        raise UserError("the input is empty: there is nothing to ingest")
    about = {"version": VERSION, **wanted, "inputs": sum(counts), "units": len(counts)}
    store.put(ABOUT, (json.dumps(about, indent=1) + "\n").encode())
    return plan_of(store, about), False


def plan_of(store: Store, about: Mapping[str, Any]) -> UnitPlan:
    """The plan that is written down as ``about``."""
    kind, media = about["input"]["kind"], about["settings"].get("media", "image")
    return UnitPlan(store, about["inputs"], about["units"], kind == "index", media)


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """What differs between two descriptions of a run, in a few words; empty where nothing does."""
    found = []
    for part in ("input", "settings"):
        for name in sorted({*before[part], *now[part]}):
            then, new = before[part].get(name), now[part].get(name)
            if then != new:
                found.append(f"{name} ({str(then)[:60]}, now {str(new)[:60]})")
    return ", ".join(found)


def write_inputs(source: Source, store: Store, unit: int | None, shuffle: bool = False) -> list[int]:
    """Write ``inputs.parquet``; the number of rows of each unit."""
    counts: list[int] = []
    with (
        tempfile.TemporaryDirectory(prefix=f"{TEMPORARY}plan-", dir=beside(store)) as folder,
        holding(Path(folder)),  # or another share would clear it away
    ):
        first, second, third = Path(folder, "first"), Path(folder, INPUTS), Path(folder, "shuffled")
        hashes, sound = array("Q"), bytearray()

        def listed() -> Iterator[pa.Table]:
            for table in source.tables() if unit is None else cut(source.tables(), unit):
                if source.unique:
                    hashes.extend(hash64(text) for text in table["source"].to_pylist())
                    sound.extend(pc.is_null(table["problem"]).to_numpy().tobytes())
                yield table

        counts = write_groups(listed(), first)
        if not counts:
            return counts
        # what has a reason of its own is not dropped as a duplicate
        again = repeated(hashes) & np.frombuffer(sound, bool) if source.unique else np.zeros(sum(counts), bool)
        mark(first, second, again)
        if shuffle:
            assert unit is not None
            first.unlink()
            counts = write_groups(cut(shuffled(second, Path(folder)), unit), third)
            third.replace(second)
        store.put_file(INPUTS, second)
    return counts


def write_groups(tables: Iterator[pa.Table], path: Path) -> list[int]:
    """Write each table as a row group of the file ``path``, if there is any; the number of rows of each."""
    counts: list[int] = []
    writer = None
    for table in tables:
        writer = writer or pq.ParquetWriter(path, table.schema, compression="zstd")
        writer.write_table(table, row_group_size=max(1, table.num_rows))
        counts.append(table.num_rows)
    if writer is not None:
        writer.close()
    return counts


def beside(store: Store) -> Path | None:
    """A folder for temporary files on the file system of the store, where it has one."""
    local = store.local_path(INPUTS)
    if local is None:
        return None
    local.parent.mkdir(parents=True, exist_ok=True)
    return local.parent


def cut(tables: Iterator[pa.Table], unit: int) -> Iterator[pa.Table]:
    """Cut a stream of tables into tables of ``unit`` rows, or of fewer once they have ``UNIT_BYTES``."""
    rest: pa.Table | None = None
    for table in tables:
        rest = table if rest is None else pa.concat_tables([rest, table])
        while length := full(rest, unit):
            yield rest.slice(0, length).combine_chunks()
            rest = rest.slice(length)
    if rest is not None and rest.num_rows:
        yield rest.combine_chunks()


def full(table: pa.Table, unit: int) -> int:
    """How many rows from the first make a full unit; 0 where there are too few."""
    if "size" in table.column_names:
        total = np.cumsum(table["size"].to_numpy())
        heavy = int(np.searchsorted(total, UNIT_BYTES)) + 1  # the row that reaches it is in
        if heavy <= min(table.num_rows, unit):
            return heavy
    return unit if table.num_rows >= unit else 0


def hash64(text: str) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest(), "little")


def repeated(hashes: array[int]) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """True where an earlier element is equal. With 64 bits, a billion rows hold a false one with 3 % probability."""
    values = np.frombuffer(hashes, np.uint64)
    order = np.argsort(values, kind="stable")
    later = np.zeros(len(values), bool)
    later[order[1:]] = values[order[1:]] == values[order[:-1]]
    return later


def mark(source: Path, target: Path, duplicate: np.ndarray[Any, np.dtype[np.bool_]]) -> None:
    """Copy a parquet file, row group by row group, with the column ``DUPLICATE`` added."""
    read = pq.ParquetFile(source)
    start = 0
    schema = read.schema_arrow.append(pa.field(DUPLICATE, pa.bool_()))
    with pq.ParquetWriter(target, schema, compression="zstd") as writer:
        for group in range(read.num_row_groups):
            table = read.read_row_group(group, use_threads=False)
            flags = pa.array(duplicate[start : start + table.num_rows])
            writer.write_table(table.append_column(DUPLICATE, flags), row_group_size=max(1, table.num_rows))
            start += table.num_rows
