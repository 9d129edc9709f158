"""Files with columns: Parquet, Arrow (IPC file or stream, Feather 2) and JSON Lines, read group by group.

A group is what can be reached at once: a row group of Parquet, a record batch of Arrow, a line of JSON (by the byte
where it begins). Of a row group the pages are in memory one at a time, and its rows some at a time.
"""

from __future__ import annotations

import base64
import binascii
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import count
from typing import Any, BinaryIO, NamedTuple, Protocol

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.files import open_file
from ingest.reasons import Reason, UnfetchedError
from ingest.sources.lists import CODECS, DAMAGE, LONGEST_SHOWN, find, inflated, key_of, of_values, plain
from seer_pipe.errors import UserError
from seer_pipe.store import is_remote

ROWS = 10_000  # of a table that lists inputs
HELD = 8 << 20  # bytes of images that are decoded at once
BUFFER = 1 << 20  # bytes of a column that are read at once
LONGEST_LINE = 1 << 28  # bytes of JSON
JSON_LINES = [kind + codec for kind in (".jsonl", ".ndjson") for codec in ("", *CODECS)]
SUFFIXES = [".parquet", ".arrow", ".feather", *JSON_LINES]
Path = list[str]  # to a column: its name, and those of fields of structures within


class Listed(NamedTuple):
    """Rows of a file in order: where each image is, its size in bytes (of a Parquet or Arrow row the mean of its
    group), what is wrong with it, and the columns to keep."""

    groups: Sequence[int]
    insides: Sequence[int]  # numbers within their groups
    sizes: Sequence[int]
    problems: Sequence[tuple[Reason, str] | None]
    kept: Sequence[pa.ChunkedArray]


class Values(NamedTuple):
    """The images of some rows that follow one another."""

    rows: int
    get: Callable[[int], Any]  # bytes, base64 text, a structure with ``bytes``, or None


class File(Protocol):
    """An open file, for its column of images and the columns to keep."""

    kept_types: Sequence[pa.DataType]

    def listed(self) -> Iterator[Listed]: ...
    def values(self, group: int) -> Iterator[Values]: ...
    def close(self) -> None: ...


def open_columns(file: str, column: str, keep: Sequence[str]) -> File:
    """UserError where a column is not there, or holds no images."""
    name = file.lower()
    kind = ParquetFile if name.endswith(".parquet") else ArrowFile if not name.endswith(tuple(JSON_LINES)) else JsonFile
    return kind(file, column, keep)


def path_of(schema: pa.Schema | pa.StructType, name: str, file: str) -> Path:
    """The path of the column ``name``, which may be that of a field within structures: ``photo.image``."""
    names = [field.name for field in schema]
    head, dot, rest = name.partition(".")
    if dot and all(known.lower() != name.lower() for known in names):
        head = find(head, names, file)
        if pa.types.is_struct(kind := schema.field(head).type):
            return [head, *path_of(kind, rest, file)]
    return [find(name, names, file)]


def type_at(schema: pa.Schema, path: Path) -> pa.DataType:
    kind = schema.field(path[0]).type
    for name in path[1:]:
        kind = kind.field(name).type
    return kind


def demand_images(kind: pa.DataType, column: str, file: str) -> None:
    kind = of_values(kind)
    holds = kind.field("bytes").type if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0 else kind
    name = str(of_values(holds))  # (large_)binary, binary_view, fixed_size_binary[n], (large_)string, string_view
    if not name.removeprefix("large_").startswith(("binary", "fixed_size_binary", "string")):
        raise UserError(f"{file}: column {column!r} is {kind}: an image is bytes, base64, or a structure with bytes; "
                        "name another with --image-column")  # fmt: skip


def at(batch: pa.RecordBatch, path: Path) -> pa.Array:
    column = batch.column(path[0])
    for name in path[1:]:
        column = pc.struct_field(column, name)
    return column


def values_of(batch: pa.RecordBatch, path: Path) -> Values:
    column = at(batch, path)
    return Values(len(column), lambda row: column[row].as_py())


def image_bytes(value: Any) -> bytes:
    """The image of a row; UnfetchedError where there is none."""
    if isinstance(value, dict):
        if value.get("bytes") is None and value.get("path"):
            raise UnfetchedError(Reason.EMPTY, f"no bytes, only a path: {str(value['path'])[:LONGEST_SHOWN]}")
        value = value.get("bytes")
    if value is None:
        raise UnfetchedError(Reason.EMPTY, "null")
    if isinstance(value, bytes):
        return value
    if not isinstance(value, str):
        raise UnfetchedError(Reason.BAD_ROW, f"neither bytes nor base64: {json.dumps(value)[:LONGEST_SHOWN]}")
    text = "".join(value.partition(";base64,")[2].split() if value.startswith("data:") else value.split())
    text = text.translate({ord("-"): "+", ord("_"): "/"}).rstrip("=")
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise UnfetchedError(Reason.BAD_ROW, f"no base64: {error}") from None


class WithSchema:
    """What Parquet and Arrow have in common."""

    def __init__(self, file: str, schema: pa.Schema, column: str, keep: Sequence[str]) -> None:
        self._path = path_of(schema, column, file)
        self._keep = [path_of(schema, name, file) for name in keep]
        demand_images(type_at(schema, self._path), column, file)
        self.kept_types: Sequence[pa.DataType] = [type_at(schema, path) for path in self._keep]

    def _rows(self, group: int, first: int, number: int, size: int, batch: pa.RecordBatch | None) -> Listed:
        kept = [pa.chunked_array([at(batch, path)]) for path in self._keep] if batch is not None else []
        return Listed([group] * number, range(first, first + number), [size] * number, [None] * number, kept)


class ParquetFile(WithSchema):
    def __init__(self, file: str, column: str, keep: Sequence[str]) -> None:
        # buffered: else a column of a row group, which may be the whole file, is read at once
        where = open_file(file) if is_remote(file) else file
        self._file = pq.ParquetFile(where, buffer_size=BUFFER, pre_buffer=False)
        super().__init__(file, self._file.schema_arrow, column, keep)
        self._about = self._file.metadata

    def _mean(self, group: int) -> int:
        about, name = self._about.row_group(group), ".".join(self._path)
        columns = map(about.column, range(about.num_columns))
        total = sum(c.total_uncompressed_size for c in columns if f"{c.path_in_schema}.".startswith(f"{name}."))
        return int(total // max(1, about.num_rows))

    def _batches(self, group: int, rows: int, paths: Iterable[Path]) -> Iterator[pa.RecordBatch]:
        names = [".".join(path) for path in paths]
        found: Iterator[pa.RecordBatch] = self._file.iter_batches(rows, [group], columns=names, use_threads=False)
        return found

    def listed(self) -> Iterator[Listed]:
        for group in range(self._about.num_row_groups):
            size, total = self._mean(group), self._about.row_group(group).num_rows
            if not self._keep:
                for first in range(0, total, ROWS):
                    yield self._rows(group, first, min(ROWS, total - first), size, None)
                continue
            first = 0
            for batch in self._batches(group, ROWS, self._keep):
                yield self._rows(group, first, batch.num_rows, size, batch)
                first += batch.num_rows

    def values(self, group: int) -> Iterator[Values]:
        rows = max(1, min(ROWS, HELD // max(1, self._mean(group))))
        for batch in self._batches(group, rows, [self._path]):
            yield values_of(batch, self._path)

    def close(self) -> None:
        self._file.close(force=True)


class ArrowFile(WithSchema):
    """A file that is here is mapped, so that nothing is held but what is looked at."""

    def __init__(self, file: str, column: str, keep: Sequence[str]) -> None:
        self._where = file
        self._open()
        super().__init__(file, self._reader.schema, column, keep)

    def _open(self) -> None:
        remote = is_remote(self._where)
        self._data = pa.PythonFile(open_file(self._where), "r") if remote else pa.memory_map(self._where)
        self._next = 0  # of a stream
        try:
            self._reader, self._is_stream = pa.ipc.open_file(self._data), False
        except pa.ArrowInvalid:
            self._data.seek(0)
            self._reader, self._is_stream = pa.ipc.open_stream(self._data), True

    def _batch(self, group: int) -> pa.RecordBatch | None:
        """None behind the last one."""
        if not self._is_stream:
            return self._reader.get_batch(group) if group < self._reader.num_record_batches else None
        if group < self._next:
            self.close()
            self._open()
        try:
            while True:
                batch = self._reader.read_next_batch()
                self._next += 1
                if self._next > group:
                    return batch
        except StopIteration:
            return None

    def listed(self) -> Iterator[Listed]:
        for group in count():
            if (batch := self._batch(group)) is None:
                return
            if batch.num_rows:
                size = at(batch, self._path).nbytes // batch.num_rows
                yield self._rows(group, 0, batch.num_rows, size, batch)

    def values(self, group: int) -> Iterator[Values]:
        if (batch := self._batch(group)) is not None:
            yield values_of(batch, self._path)

    def close(self) -> None:
        self._data.close()


class JsonFile:
    """A line is an object; the kept columns are text. A line that is no object is a row that says so."""

    def __init__(self, file: str, column: str, keep: Sequence[str]) -> None:
        self._where, self._column, self._keep = file, column, keep
        self.kept_types: Sequence[pa.DataType] = [pa.string()] * len(keep)
        self._open()

    def _open(self) -> None:
        self._data: BinaryIO = inflated(open_file(self._where), self._where)[0]
        self._at = 0  # bytes read

    def listed(self) -> Iterator[Listed]:
        rows, seen, found = list[tuple[Any, ...]](), dict[str, Any](), False
        damage: Exception | None = None
        while damage is None:
            try:
                begin, line = self._at, self._line()
            except DAMAGE as error:
                line, damage = b"", error  # what is before it counts
            if not line:
                break
            if line.strip(b"\xef\xbb\xbf \t\r\n"):
                row, wrong = parsed(line)
                seen, found = seen or row, found or has(row, self._column)
                problem = (Reason.BAD_ROW, f"byte {begin}: {wrong}") if wrong else None
                if len(line) == LONGEST_LINE and line[-1:] != b"\n":
                    problem = Reason.TOO_LARGE, f"byte {begin}: a line of more than {LONGEST_LINE} bytes"
                    while (more := self._line()) and more[-1:] != b"\n":
                        pass
                rows.append((begin, 0, len(line) * 3 // 4, problem, *(plain(get(row, name)) for name in self._keep)))
            if len(rows) == ROWS:
                yield self._listed(rows)
                rows = []
        if seen and not found:
            find(self._column, list(seen), self._where)  # says which there are
        if rows:
            yield self._listed(rows)
        if damage is not None:
            raise damage

    @staticmethod
    def _listed(rows: Sequence[tuple[Any, ...]]) -> Listed:
        groups, insides, sizes, problems, *kept = map(list, zip(*rows, strict=True))
        return Listed(groups, insides, sizes, problems, [pa.chunked_array([pa.array(c, pa.string())]) for c in kept])

    def _line(self) -> bytes:
        line = self._data.readline(LONGEST_LINE)
        self._at += len(line)
        return line

    def values(self, group: int) -> Iterator[Values]:
        if group < self._at:
            self.close()
            self._open()
        while self._at < group and (skipped := self._data.read(min(group - self._at, BUFFER))):
            self._at += len(skipped)
        row, wrong = parsed(self._line())
        if wrong:
            raise ValueError(wrong)
        yield Values(1, lambda _: get(row, self._column))

    def close(self) -> None:
        self._data.close()


def parsed(line: bytes) -> tuple[dict[str, Any], str]:
    """The object of a line, or what is wrong with it."""
    try:
        row = json.loads(line.decode("utf-8-sig"))
    except (ValueError, RecursionError) as error:
        return {}, f"no JSON: {error}"
    return (row, "") if isinstance(row, dict) else ({}, "no JSON object")


def has(row: dict[str, Any], name: str) -> bool:
    return key_of(name, row) is not None or ("." in name and isinstance(row.get(name.partition(".")[0]), dict))


def get(row: Any, name: str) -> Any:
    """The value of a key, which may be one within objects: ``photo.image``; None where there is none."""
    if not isinstance(row, dict):
        return None
    if (key := key_of(name, row)) is not None:
        return row[key]
    head, dot, rest = name.partition(".")
    return get(row.get(head), rest) if dot else None
