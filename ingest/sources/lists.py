"""Reading URL lists: a row is the URL, then the columns to keep.

A row that cannot be read as one (a line that is no JSON, a CSV row that is too short) becomes a row whose URL is what
stands there, so that it is counted and rejected like any other.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from ingest.files import open_file
from seer_pipe.errors import UserError

BATCH = 10_000  # rows of a table
LONGEST_CELL = 1 << 24  # characters
LONGEST_SHOWN = 500  # characters of a row that is not readable
CODECS = {".gz": "gzip", ".zst": "zstd"}
Rows = Iterator[list[str | None]]


def text_rows(file: BinaryIO, name: str, url: str, keep: Sequence[str]) -> Rows:
    """A line is a URL, whatever is in it."""
    if keep:
        raise UserError(f"{name}: a text list has no columns to keep")
    for line in file:
        if text := decoded(line):
            yield [text]


def csv_rows(file: BinaryIO, name: str, url: str, keep: Sequence[str]) -> Rows:
    return separated(file, name, [url, *keep], dialect="excel")


def tsv_rows(file: BinaryIO, name: str, url: str, keep: Sequence[str]) -> Rows:
    """Tabs separate, and quotes are ordinary characters: so it is written by nearly everyone."""
    return separated(file, name, [url, *keep], delimiter="\t", quoting=csv.QUOTE_NONE)


def separated(file: BinaryIO, name: str, columns: Sequence[str], **form: Any) -> Rows:
    csv.field_size_limit(LONGEST_CELL)
    text = io.TextIOWrapper(file, "utf-8-sig", errors="backslashreplace", newline="")
    # strict: a quote that is never closed would else swallow the rows after it, silently
    rows = csv.reader(text, strict=True, **form)
    try:
        header = next(rows, [])
        places = [header.index(find(column, header, name)) for column in columns]
        for row in rows:
            if row:
                yield [row[place] if place < len(row) else "" for place in places]
    except csv.Error as error:
        raise UserError(f"{name}: line {rows.line_num}: {error}") from None


def json_rows(file: BinaryIO, name: str, url: str, keep: Sequence[str]) -> Rows:
    names: list[str] = []
    for line in file:
        text = decoded(line)
        try:
            row = json.loads(text) if text else None
        except (ValueError, RecursionError):
            row = text
        if isinstance(row, dict):
            names = names or [find(column, list(row), name) for column in (url, *keep)]
            yield [plain(row.get(name)) for name in names]
        elif text:
            yield [text[:LONGEST_SHOWN], *(None for _ in keep)]


def plain(value: Any) -> str | None:
    """A JSON value as text that any encoding can hold."""
    if value is None:
        return None
    text = value if isinstance(value, str) else json.dumps(value)
    return text.encode("utf-8", "backslashreplace").decode()


def decoded(line: bytes) -> str:
    return line.decode("utf-8", "backslashreplace").strip("\ufeff \t\r\n")


def find(column: str, names: Sequence[str], where: str) -> str:
    """The column's name as it is written in the list; case does not matter where the exact name is not there."""
    if column in names:
        return column
    alike = [name for name in names if name.lower() == column.lower()]
    if len(alike) != 1:
        raise UserError(f"{where}: no column {column!r}; it has {', '.join(map(repr, names)) or 'no columns'}")
    return alike[0]


READERS: dict[str, Callable[[BinaryIO, str, str, Sequence[str]], Rows]] = {
    ".txt": text_rows,
    ".csv": csv_rows,
    ".tsv": tsv_rows,
    ".jsonl": json_rows,
}
PARQUET = ".parquet"
SUFFIXES = [PARQUET, *READERS, *(kind + codec for kind in READERS for codec in CODECS)]


def tables(file: str, url: str, keep: Sequence[str], schema: pa.Schema) -> Iterator[pa.Table]:
    """The list ``file`` in tables of ``schema``: the URL, then the columns ``keep``.

    UserError where a column is missing or the file is damaged.
    """
    name = file.lower()
    try:
        with open_file(file) as data:
            if name.endswith(PARQUET):
                found = parquet_tables(data, file, url, keep)
            else:
                stem, dot, last = name.rpartition(".")
                if codec := CODECS.get(dot + last):
                    data = io.BufferedReader(pa.CompressedInputStream(pa.PythonFile(data, mode="r"), codec))
                    stem, dot, last = stem.rpartition(".")
                found = row_tables(READERS[dot + last](data, file, url, keep))
            for table in found:
                yield table.rename_columns(schema.names).cast(schema)
    except (OSError, EOFError, pa.ArrowException) as error:
        raise UserError(f"{file}: not readable: {error}") from None


def row_tables(rows: Rows) -> Iterator[pa.Table]:
    while batch := list(islice(rows, BATCH)):
        columns = [pa.array(column, pa.string()) for column in zip(*batch, strict=True)]
        yield pa.table(columns, [str(place) for place in range(len(columns))])


def parquet_tables(data: BinaryIO, file: str, url: str, keep: Sequence[str]) -> Iterator[pa.Table]:
    parquet = pq.ParquetFile(data)
    columns = [find(column, parquet.schema_arrow.names, file) for column in (url, *keep)]
    for batch in parquet.iter_batches(BATCH, columns=list(dict.fromkeys(columns)), use_threads=False):
        yield pa.Table.from_batches([batch]).select(columns)


def column_types(files: Sequence[str], keep: Sequence[str]) -> list[pa.Field]:
    """Fields of the columns ``keep``: as in the first file if all are parquet, else text."""
    if not keep or not all(file.lower().endswith(PARQUET) for file in files):
        return [pa.field(name, pa.string()) for name in keep]
    try:
        with open_file(files[0]) as data:
            schema = pq.read_schema(data)
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"{files[0]}: not readable: {error}") from None
    return [schema.field(find(name, schema.names, files[0])) for name in keep]
