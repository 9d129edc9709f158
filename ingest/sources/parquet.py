"""Images in a column of Parquet, Arrow or JSON Lines files, as data sets are published on hubs."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import closing
from types import TracebackType

import pyarrow as pa

from ingest.budget import Lease
from ingest.files import expand, labels, listing
from ingest.reasons import Reason, UnfetchedError, said
from ingest.sources import FILE, PROBLEM, InFiles, Row, demand_no_problem, kept_fields, listed
from ingest.sources.columns import SUFFIXES, File, Listed, Values, image_bytes, open_columns
from ingest.sources.lists import common, converted, sound
from ingest.sources.readers import DAMAGE, Readers
from seer_pipe.errors import UserError

FIELDS = (
    pa.field("source", pa.string()),
    pa.field("size", pa.int64()),
    pa.field("place", pa.int64()),  # number of the row in its file
    pa.field("group", pa.int64()),
    pa.field("inside", pa.int64()),
)


class ParquetSource(InFiles):
    """The rows of the file, pattern or folder ``where``, in order; ``source`` is file/row.

    ``column`` holds the images: bytes, base64, or a structure ``{bytes, path}``; the columns ``keep`` go into the
    sidecar, as they are (of JSON as text). Both may be fields of structures: ``photo.image``. A file that cannot be
    read is one rejected input.
    """

    def __init__(self, where: str, column: str, keep: Sequence[str], max_bytes: int) -> None:
        self._files = expand(where, SUFFIXES)
        self._column, self._keep, self._max_bytes = column, list(keep), max_bytes
        self.kept = kept_fields(self._types())
        self.identity = {
            "kind": "parquet", "files": listing(self._files), "image_column": column, "keep_columns": self._keep
        }  # fmt: skip
        self._readers = Readers(lambda file: RowReader(open_columns(file, column, [])))

    def _types(self) -> list[pa.Field]:
        """Of the kept columns: types that hold those of all files."""
        fields: list[pa.Field] = []
        for file in self._files if self._keep else ():
            try:
                with closing(open_columns(file, self._column, self._keep)) as data:
                    found = list(map(pa.field, self._keep, data.kept_types))
            except UserError:
                raise
            except DAMAGE:  # the list will say so
                continue
            fields = [common(*pair, file) for pair in zip(fields or found, found, strict=True)]
        return fields or [pa.field(name, pa.string()) for name in self._keep]

    def tables(self) -> Iterator[pa.Table]:
        for file, label in zip(self._files, labels(self._files), strict=True):
            place = 0
            try:
                with closing(open_columns(file, self._column, self._keep)) as data:
                    for part in data.listed():
                        yield self._table(file, label, place, part)
                        place += len(part.groups)
            except UserError:
                raise
            except DAMAGE as error:
                wrong = Reason.UNREADABLE, f"damaged from row {place} on: {said(error)}"
                nothing = [pa.chunked_array([pa.nulls(1, field.type)]) for field in self.kept]
                yield self._table(file, label, place, Listed([0], [0], [0], [wrong], nothing))

    def _table(self, file: str, label: str, first: int, part: Listed) -> pa.Table:
        rows = range(first, first + len(part.groups))
        problems = [problem and problem[0].value for problem in part.problems]
        details = [problem and problem[1] for problem in part.problems]
        kept = [sound(converted(column, field.type)) for column, field in zip(part.kept, self.kept, strict=True)]
        schema = pa.schema([*FIELDS, *PROBLEM, FILE, *listed(self.kept)])
        names, files = [f"{label}/{row}" for row in rows], [os.fsencode(file)] * len(rows)
        return pa.table([names, part.sizes, rows, part.groups, part.insides, problems, details, files, *kept], schema)

    async def fetch(self, row: Row, lease: Lease) -> bytes:
        demand_no_problem(row)
        await lease.hold(min(row["size"], self._max_bytes))
        data = await self._readers.read(row["file"], (row["group"], row["inside"]), self._max_bytes)
        await lease.hold(len(data))
        return data

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._readers.close()


class RowReader:
    """Reads the rows of a file from front to back: another group, or a row before the last ones, begins its group."""

    def __init__(self, file: File) -> None:
        self._file = file
        self._group, self._first = -1, 0
        self._values = Values(0, lambda _: None)  # of rows of that group, from the first
        self._rest: Iterator[Values] = iter(())
        self._damage = ""  # behind those

    def read(self, place: tuple[int, int], size: int) -> bytes:
        group, inside = place
        if group != self._group or inside < self._first:
            self._group, self._first, self._damage = group, 0, ""
            self._values, self._rest = Values(0, lambda _: None), self._file.values(group)
        while inside >= self._first + self._values.rows:
            self._go_on()
        data = image_bytes(self._values.get(inside - self._first))
        if len(data) > size:
            raise UnfetchedError(Reason.TOO_LARGE, f"{len(data)} bytes; {size} allowed")
        return data

    def _go_on(self) -> None:
        if not self._damage:  # what is behind damage is not looked for again, row by row from the front
            try:
                if (values := next(self._rest, None)) is not None:
                    self._first, self._values = self._first + self._values.rows, values
                    return
                self._damage = "there are fewer rows than there were"
            except DAMAGE as error:
                self._damage = said(error)
        raise ValueError(self._damage)

    def close(self) -> None:
        self._file.close()
