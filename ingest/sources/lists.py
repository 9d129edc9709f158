"""Reading URL lists: a row is the URL, then the columns to keep, then what is wrong with the row, if anything is.

A row that cannot be read as one (a line that is no JSON, a CSV row whose quotes are broken) becomes a row whose URL is
what stands there, so that it is counted and rejected like any other, and costs itself alone.
"""

from __future__ import annotations

import csv
import io
import json
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO, cast

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from ingest.files import open_file
from seer_pipe.errors import UserError

BATCH = 10_000  # rows of a table
LONGEST_CELL = 1 << 20  # characters
LONGEST_SHOWN = 500  # characters of a row that is not readable
CODECS = {".gz": "gzip", ".zst": "zstd"}
DAMAGE = (OSError, EOFError, ValueError, pa.ArrowException)  # what damaged files raise: names that are no text, too
Rows = Iterator[list[str | None]]
BOMS = {b"\xff\xfe\0\0": "utf-32", b"\0\0\xfe\xff": "utf-32", b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}


def text_of(file: BinaryIO, newline: str | None = None) -> io.TextIOWrapper:
    """A file as text: UTF-16 (as PowerShell writes) or UTF-32 where it says so or its zeros show it, else UTF-8."""
    start = file.peek(4)[:4]  # type: ignore[attr-defined]
    encoding = next((name for mark, name in BOMS.items() if start.startswith(mark)), "utf-8-sig")
    if encoding == "utf-8-sig" and len(start) == 4 and b"\0\0" in (start[::2], start[1::2]):
        encoding = "utf-16-be" if start[0] == 0 else "utf-16-le"
    return io.TextIOWrapper(file, encoding, errors="backslashreplace", newline=newline)


def text_rows(file: BinaryIO, name: str, columns: Sequence[str], found: set[str]) -> Rows:
    """A line is a URL, whatever is in it."""
    if len(columns) > 1:
        raise UserError(f"{name}: a text list has no columns to keep")
    for line in text_of(file):
        if text := line.strip("\ufeff \t\r\n"):
            yield [text, None]


def csv_rows(file: BinaryIO, name: str, columns: Sequence[str], found: set[str]) -> Rows:
    return separated(file, name, columns, found, dialect="excel")


def tsv_rows(file: BinaryIO, name: str, columns: Sequence[str], found: set[str]) -> Rows:
    """Tabs separate, and quotes are ordinary characters: so it is written by nearly everyone."""
    return separated(file, name, columns, found, delimiter="\t", quoting=csv.QUOTE_NONE)


class Lines:
    """The lines of a text, of which those of the latest record can be read again."""

    def __init__(self, text: io.TextIOWrapper) -> None:
        self._text, self._again = text, deque[str]()
        self.number, self.record = 0, list[str]()

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = self._again.popleft() if self._again else next(self._text)
        self.number += 1
        self.record.append(line)
        return line

    def go_back(self) -> str:
        """The record's first line, after which reading continues."""
        first, *rest = self.record
        self._again.extendleft(reversed(rest))
        self.number -= len(rest)
        return first


def separated(file: BinaryIO, name: str, columns: Sequence[str], found: set[str], **form: Any) -> Rows:
    csv.field_size_limit(LONGEST_CELL)
    lines = Lines(text_of(file, newline=""))
    # strict: a quote that is never closed would else swallow the rows after it, silently
    rows = csv.reader(lines, strict=True, **form)
    try:
        header = next(rows, [])
    except csv.Error as error:
        raise UserError(f"{name}: line 1: {error}") from None
    places = [header.index(find(column, header, name)) for column in columns]
    found.update(columns)
    while True:
        lines.record.clear()
        wrong, shown = "", ""
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            shown = lines.go_back()
            row, wrong = escaped(shown, len(header)), str(error)
            rows = csv.reader(lines, strict=True, **form)
        if row and (any(row[len(header) :]) or len(row) <= places[0]):
            row, wrong = [], f"{len(row)} cells where the header has {len(header)}"
            shown = "".join(lines.record)
        if row:
            yield [*(row[place] if place < len(row) else None for place in places), None]
        elif wrong:
            nothing = [None] * (len(columns) - 1)
            yield [shown.strip()[:LONGEST_SHOWN], *nothing, f"line {lines.number}: {wrong}"]


def escaped(line: str, cells: int) -> list[str]:
    """The cells of a line in which quotes are escaped by backslashes, as Spark writes; none where that does not fit."""
    if '\\"' not in line:
        return []
    try:
        row = next(csv.reader([line], strict=True, doublequote=False, escapechar="\\"), [])
    except csv.Error:
        return []
    return row if len(row) == cells else []


def json_rows(file: BinaryIO, name: str, columns: Sequence[str], found: set[str]) -> Rows:
    """A line is an object; a row may lack a key that others have, but not all of them the first one."""
    seen: dict[str, Any] = {}
    for number, line in enumerate(text_of(file), 1):
        if not (text := line.strip("\ufeff \t\r\n")):
            continue
        try:
            row = json.loads(text)
            wrong = "" if isinstance(row, dict) else "no JSON object"
        except (ValueError, RecursionError) as error:
            row, wrong = None, f"no JSON: {error}"
        if wrong:
            nothing = [None] * (len(columns) - 1)
            yield [text[:LONGEST_SHOWN], *nothing, f"line {number}: {wrong}"]
            continue
        keys = [key_of(column, row) for column in columns]
        found.update(column for column, key in zip(columns, keys, strict=True) if key is not None)
        seen = seen or row
        yield [*(None if key is None else plain(row[key]) for key in keys), None]
    if not seen:  # no row lacks a key
        found.update(columns)
    elif columns[0] not in found:
        find(columns[0], list(seen), name)  # says which there are


def key_of(column: str, row: dict[str, Any]) -> str | None:
    """The key that is written so, or else the only one that differs in case alone."""
    if column in row:
        return column
    alike = [key for key in row if key.lower() == column.lower()]
    return alike[0] if len(alike) == 1 else None


def plain(value: Any) -> str | None:
    """A JSON value as text that any encoding can hold."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "backslashreplace").decode()


def find(column: str, names: Sequence[str], where: str) -> str:
    """The column's name as it is written in the list; case does not matter where the exact name is not there."""
    alike = [name for name in names if name == column] or [name for name in names if name.lower() == column.lower()]
    if len(alike) > 1:
        raise UserError(f"{where}: {len(alike)} columns are called {column!r}")
    if not alike:
        raise UserError(f"{where}: no column {column!r}; it has {', '.join(map(repr, names)) or 'no columns'}")
    return alike[0]


READERS: dict[str, Callable[[BinaryIO, str, Sequence[str], set[str]], Rows]] = {
    ".txt": text_rows,
    ".csv": csv_rows,
    ".tsv": tsv_rows,
    ".jsonl": json_rows,
}
PARQUET = ".parquet"
SUFFIXES = [PARQUET, *READERS, *(kind + codec for kind in READERS for codec in CODECS)]


def tables(file: str, columns: Sequence[str], types: Sequence[pa.DataType], found: set[str]) -> Iterator[pa.Table]:
    """The list ``file`` in tables: the ``columns`` as those ``types``, then what is wrong with the row (text or null).

    The first column must be there, and all in a format that has a header; what was seen of them goes into ``found``.
    UserError where one is missing or the file is damaged.
    """
    name = file.lower()
    try:
        with open_file(file) as data:
            if name.endswith(PARQUET):
                rows = parquet_tables(data, file, columns, found)
            else:
                plain_data, suffix = inflated(data, name)
                rows = row_tables(READERS[suffix](plain_data, file, columns, found))
            for table in rows:
                *cells, wrong = table.columns
                cells = [sound(converted(cell, kind)) for cell, kind in zip(cells, types, strict=True)]
                yield pa.table([*cells, wrong], [str(place) for place in range(len(cells) + 1)])
    except UserError:
        raise
    except DAMAGE as error:
        raise UserError(f"{file}: not readable: {error}") from None


def inflated(data: BinaryIO, name: str) -> tuple[BinaryIO, str]:
    """A file without its compression, and its suffix without that of the compression."""
    stem, dot, last = name.lower().rpartition(".")
    if codec := CODECS.get(dot + last):
        stream = pa.CompressedInputStream(pa.PythonFile(data, mode="r"), codec)
        return cast(BinaryIO, io.BufferedReader(stream)), "." + stem.rpartition(".")[2]
    return data, dot + last


def row_tables(rows: Rows) -> Iterator[pa.Table]:
    while batch := list(islice(rows, BATCH)):
        columns = [pa.array(column, pa.string()) for column in zip(*batch, strict=True)]
        yield pa.table(columns, [str(place) for place in range(len(columns))])


def parquet_tables(data: BinaryIO, file: str, columns: Sequence[str], found: set[str]) -> Iterator[pa.Table]:
    parquet = pq.ParquetFile(data)
    names = [find(column, parquet.schema_arrow.names, file) for column in columns]
    found.update(columns)
    for batch in parquet.iter_batches(BATCH, columns=list(dict.fromkeys(names)), use_threads=False):
        cells = [pa.chunked_array([batch.column(name)]) for name in names]
        nothing = pa.nulls(batch.num_rows, pa.string())
        yield pa.table([*cells, nothing], [str(place) for place in range(len(names) + 1)])


def converted(column: pa.ChunkedArray, kind: pa.DataType) -> pa.ChunkedArray:
    if column.type.equals(kind):
        return column
    return pc.cast(column, options=pc.CastOptions(kind, allow_invalid_utf8=True))


def sound(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """The column with text that is text: a byte that is not UTF-8 as ``\\xff``, and where it is within a list or a
    structure, null instead of that."""
    if is_sound(column):
        return column
    if column.type in (pa.string(), pa.large_string()):
        raw = column.cast(pa.binary() if column.type == pa.string() else pa.large_binary())
        texts = (value if value is None else value.decode("utf-8", "backslashreplace") for value in raw.to_pylist())
        return pa.chunked_array([pa.array(texts, column.type)])
    return column.take(pa.array([i if is_sound(column.take(pa.array([i]))) else None for i in range(len(column))]))


def is_sound(column: pa.ChunkedArray) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def column_types(files: Sequence[str], keep: Sequence[str]) -> list[pa.Field]:
    """Fields of the columns ``keep``: of a type that holds those of all files if all are parquet, else text.
    UserError where there is no such type."""
    if not keep or not all(file.lower().endswith(PARQUET) for file in files):
        return [pa.field(name, pa.string()) for name in keep]
    fields: list[pa.Field] = []
    for file in files:
        try:
            with open_file(file) as data:
                there = pq.read_schema(data)
        except DAMAGE as error:
            raise UserError(f"{file}: not readable: {error}") from None
        found = [pa.field(name, there.field(find(name, there.names, file)).type) for name in keep]
        fields = [common(*pair, file) for pair in zip(fields or found, found, strict=True)]
    return fields


def of_values(kind: pa.DataType) -> pa.DataType:
    """The type of a column's values: a dictionary is a way to write them."""
    return kind.value_type if pa.types.is_dictionary(kind) else kind


def common(field: pa.Field, other: pa.Field, file: str) -> pa.Field:
    """A field whose type holds the values of both."""
    if field.type != other.type:
        field, other = (one.with_type(of_values(one.type)) for one in (field, other))
    try:
        both = pa.unify_schemas([pa.schema([field]), pa.schema([other])], promote_options="permissive")
    except pa.ArrowException:
        raise UserError(
            f"{file}: column {field.name!r} is {other.type} here and {field.type} in a file before; "
            "give the files one type, or keep the column out"
        ) from None
    return both.field(0)
