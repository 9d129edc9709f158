"""Two shard sets on one map: their embeddings as one file, in which an image of both stands once.

An image is in both sets where both hold the same bytes, by the SHA-256 of their sidecars. Of an image that a set holds
several times each copy is a row of its own, and goes with a copy of the other set as long as there is one. Memory holds
the keys of the second set, and 8 bytes for each image of both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from seer_pipe.data.order import Ints
from seer_pipe.errors import UserError
from seer_pipe.evaluate.embeddings import clusters_of, open_embeddings, weights_of
from seer_pipe.report.clusters import Sample, columns_of
from seer_pipe.report.shown import Column
from seer_pipe.shards import ShardSet

FIRST, BOTH, SECOND = range(3)  # states of a row
STATE, KEY, SHARD = "state", "beside_key", "beside_shard"  # columns of the joined file; the last two: of its copy
NAMES = ("clusters.parquet", "clusters-beside.parquet")  # which image is in which cluster, of each set
CLUSTERED = pa.schema([("key", pa.string()), ("shard", pa.string()), ("cluster", pa.int32())])
Hashes = npt.NDArray[np.uint64]


class Pair(ShardSet):
    """Two sets as one. Its shards are called ``0:PATH`` and ``1:PATH``; a column that one set lacks is null there."""

    def __init__(self, first: ShardSet, second: ShardSet) -> None:
        self.sets = first, second
        self.store = first.store
        self.paths = [f"{which}:{path}" for which, one in enumerate(self.sets) for path in one.paths]
        self.counts = np.concatenate([first.counts, second.counts])
        self._columns = [set(one.sidecar(0).column_names) for one in self.sets]

    def _find(self, shard: int) -> tuple[int, int]:
        before = len(self.sets[0].paths)
        return (0, shard) if shard < before else (1, shard - before)

    def sidecar(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        which, number = self._find(shard)
        table = self.sets[which].sidecar(number, columns and [name for name in columns if name in self._columns[which]])
        for name in columns or ():
            if name not in self._columns[which]:
                table = table.append_column(name, pa.nulls(self.sets[which].counts[number]))
        return table

    def url(self, shard: int) -> str:
        which, number = self._find(shard)
        return self.sets[which].url(number)

    def get_range(self, shard: int, start: int, length: int) -> bytes:
        which, number = self._find(shard)
        return self.sets[which].get_range(number, start, length)


def split_path(path: str) -> tuple[int, str]:
    """Of a shard of a `Pair`: the number of its set, and its path there."""
    which, _, own = path.partition(":")
    return int(which), own


def join(files: tuple[Path, Path], pair: Pair, out: Path) -> None:
    """Write the embeddings of both sets as one file: those of the first, then what the second has beyond. UserError
    where they are of different weights."""
    if weights_of(files[0]) != weights_of(files[1]):
        raise UserError(f"{files[1]}: of other weights than {files[0]}; remove the older one, and it is computed again")
    first, second = (open_embeddings(file) for file in files)
    there, beside = (_hashes(data, shards) for data, shards in zip((first, second), pair.sets, strict=True))
    at = partners(there, beside)
    copies = second.read(["key", "shard"]).take(pa.array(at, pa.int64(), mask=at < 0))
    kept = np.ones(len(beside), np.bool_)
    kept[at[at >= 0]] = False
    none = pa.table({name: pa.nulls(len(beside), pa.string()) for name in ("key", "shard")})
    more = [pa.field(STATE, pa.int8()), pa.field(KEY, pa.string()), pa.field(SHARD, pa.string())]
    schema = pa.schema([*first.schema_arrow, *more], first.schema_arrow.metadata)
    with pq.ParquetWriter(out, schema, compression="zstd") as writer:
        for which, data, state, copy, chosen in (
            (0, first, np.where(np.isin(there, beside), BOTH, FIRST), copies, np.ones(len(there), np.bool_)),
            (1, second, np.where(np.isin(beside, there), BOTH, SECOND), none, kept),
        ):
            start = 0
            for group in range(data.num_row_groups):
                table = data.read_row_group(group)
                here, own = slice(start, start + len(table)), copy.slice(start, len(table))
                start += len(table)
                named = pa.array([f"{which}:{path}" for path in table["shard"].to_pylist()], pa.string())
                table = table.set_column(table.column_names.index("shard"), "shard", named)
                for field, column in zip(more, (pa.array(state[here], pa.int8()), *own.columns), strict=True):
                    table = table.append_column(field, column)
                table = table.filter(pa.array(chosen[here]))
                if len(table):
                    writer.write_table(table.select(schema.names).cast(schema))


def _hashes(data: pq.ParquetFile, shards: ShardSet) -> Hashes:
    """The first 8 bytes of the SHA-256 of each image of a file of embeddings."""
    found = [np.zeros(0, np.uint64)]
    for group in range(data.num_row_groups):
        table = data.read_row_group(group, ["key", "shard", "index"])
        index = table["index"].to_numpy().astype(np.int64)
        rows = Sample(table["key"].to_pylist(), table["shard"].to_pylist(), index, np.zeros(0, np.int64))
        texts = columns_of(shards, rows, ["sha256"])["sha256"].to_pylist()
        found.append(np.array([int(text[:16], 16) for text in texts], np.uint64))
    return np.concatenate(found)


def partners(first: Hashes, second: Hashes) -> Ints:
    """For each of ``first`` [n] the place in ``second`` of one that is equal, or -1; none is given twice."""
    _, code = np.unique(np.concatenate([first, second]), return_inverse=True)
    one, other = code[: len(first)], code[len(first) :]
    nth, other_nth = _nth(one), _nth(other)
    many = 1 + int(max(nth.max(initial=0), other_nth.max(initial=0)))
    _, here, there = np.intersect1d(one * many + nth, other * many + other_nth, return_indices=True)
    found = np.full(len(first), -1)
    found[here] = there
    return found


def _nth(code: Ints) -> Ints:
    """How many equal ones stand before each."""
    order = np.argsort(code, kind="stable")
    begins = np.flatnonzero(np.r_[True, np.diff(code[order]) != 0])
    nth = np.empty(len(code), np.int64)
    nth[order] = np.arange(len(code)) - np.repeat(begins, np.diff([*begins, len(code)]))
    return nth


@dataclass
class Parts:
    """What of each set is where."""

    state: npt.NDArray[np.int8]  # [n] of each row of some row groups
    copy: list[tuple[str, str] | None]  # [n] of an image of the first set, key and shard (``1:PATH``) of its copy
    count: Ints  # [K, 3] images of each state in each cluster, of all row groups

    def column(self, rows: Ints, names: Sequence[str]) -> Column:
        """What images of the map can be coloured by; ``names`` of the two sets."""
        return Column("set", self.state[rows].astype(np.uint8), names=[f"only {names[0]}", "both", f"only {names[1]}"])


def parts(joined: Path, named: Path, groups: Sequence[int], folder: Path) -> Parts:
    """Of the ``groups`` that are looked at, and of all images by cluster; and write `NAMES` into ``folder``.

    ``named``: the file that names the clusters of the images of ``joined``, row group for row group.
    """
    data, naming = pq.ParquetFile(joined), pq.ParquetFile(named)
    count = np.zeros((0, 3), np.int64)
    state, copy = [], []
    with (
        pq.ParquetWriter(folder / NAMES[0], CLUSTERED) as first,
        pq.ParquetWriter(folder / NAMES[1], CLUSTERED) as second,
    ):
        for group, cluster in enumerate(clusters_of(naming)):
            table = data.read_row_group(group, ["key", "shard", STATE, KEY, SHARD])
            own = table[STATE].to_numpy().astype(np.int64)
            here = np.bincount(3 * cluster + own, minlength=3 * len(count))
            here = np.pad(here, (0, -len(here) % 3)).reshape(-1, 3)
            here[: len(count)] += count
            count = here
            which, path = zip(*map(split_path, table["shard"].to_pylist()), strict=True)
            in_second = np.array(which) == 1
            plain = pa.table([table["key"], pa.array(path), pa.array(cluster, pa.int32())], schema=CLUSTERED)
            copied = pa.table([table[KEY], table[SHARD], pa.array(cluster, pa.int32())], schema=CLUSTERED)
            first.write_table(plain.filter(pa.array(~in_second)))
            second.write_table(copied.filter(table[KEY].is_valid()))
            second.write_table(plain.filter(pa.array(in_second)))
            if group in groups:
                state.append(own)
                copy += [
                    None if key is None else (key, f"1:{shard}")
                    for key, shard in zip(table[KEY].to_pylist(), table[SHARD].to_pylist(), strict=True)
                ]
    return Parts(np.concatenate(state).astype(np.int8), copy, count)
