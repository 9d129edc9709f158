"""Web archives: the images in the responses of WARC and ARC files, Common Crawl's among them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import islice
from types import TracebackType
from typing import BinaryIO, Literal, NamedTuple

import pyarrow as pa
from fastwarc.warc import ArchiveIterator, WarcRecord, WarcRecordType

from ingest.budget import Lease
from ingest.files import expand, labels, listing, open_file
from ingest.formats import sniff
from ingest.reasons import Reason
from ingest.sources import FILE, PROBLEM, Plain, Row, UnfetchedError, arc, demand_no_problem, listed
from ingest.sources.readers import DAMAGE, Readers

SUFFIXES = (".warc", ".warc.gz", ".warc.zst", ".arc", ".arc.gz")
BATCH = 10_000  # rows of a table
PIECE = 1 << 20  # bytes of one read
HEAD = 64  # bytes looked at where a response does not say what it is
KEPT_FIELDS = (pa.field("date", pa.string()),)
SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("size", pa.int64()),
        ("place", pa.int64()),
        *listed(KEPT_FIELDS),
        *PROBLEM,
        FILE,
    ]
)


IMAGES = WarcRecordType.response | WarcRecordType.resource | WarcRecordType.revisit
VAGUE = ("", "application/octet-stream", "binary/octet-stream", "unk")  # types that say nothing


class Capture(NamedTuple):
    """One image of a WARC file, or what is wrong with it."""

    url: str
    size: int = 0  # bytes of the record, before any decoding
    place: int = 0  # of the record
    date: str | None = None  # ISO 8601
    problem: Reason | None = None
    detail: str | None = None


class WarcSource(Plain):
    """The images of the file, pattern or folder ``where``: responses with status 200 (and resources) that are, or may
    be, images. ``source`` is their URL, and the sidecar keeps their ``date``.

    A revisit holds no image, and is rejected. The rest of a file that breaks off or cannot be read is one rejected
    input.
    """

    kept: Sequence[pa.Field] = KEPT_FIELDS

    def __init__(self, where: str, max_bytes: int) -> None:
        self._files = expand(where, SUFFIXES)
        self._max_bytes = max_bytes
        self._readers = Readers(WarcReader)
        self.identity = {"kind": "warc", "files": listing(self._files)}

    def tables(self) -> Iterator[pa.Table]:
        for file, label in zip(self._files, labels(self._files), strict=True):
            rows = ((*capture, os.fsencode(file)) for capture in captures(file, label))
            while batch := list(islice(rows, BATCH)):
                yield pa.table([*map(list, zip(*batch, strict=True))], schema=SCHEMA)

    async def fetch(self, row: Row, lease: Lease) -> bytes:
        demand_no_problem(row)
        await lease.hold(min(row["size"], self._max_bytes))
        return await self._readers.read(row["file"], row["place"], self._max_bytes)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._readers.close()


def captures(file: str, label: str) -> Iterator[Capture]:
    """The images in a file, in order, up to where it is damaged."""
    try:
        with open_file(file) as data:
            for place, size, record in arc.records(data, 0, arc.LONGEST_HEADER) if is_arc(file) else records(data):
                if not is_image(record):
                    continue
                about, revisit = record.headers.get, record.record_type == WarcRecordType.revisit
                yield Capture(
                    text(about("WARC-Target-URI")),
                    size,
                    place,
                    record.record_date.isoformat() if record.record_date else None,
                    Reason.REVISIT if revisit else None,
                    text(about("WARC-Refers-To-Target-URI")) if revisit else None,
                )
    except DAMAGE as error:
        yield Capture(f"{label}/…", problem=Reason.UNREADABLE, detail=f"damaged from here on: {text(str(error))}")


def is_arc(file: str) -> bool:
    return file.lower().endswith((".arc", ".arc.gz"))


def records(data: BinaryIO) -> Iterator[tuple[int, int, WarcRecord]]:
    """Place, size and content of each record that may be an image."""
    last = 0
    for record in ArchiveIterator(data, IMAGES):
        last = record.stream_pos
        yield last, int(record.headers.get("Content-Length") or 0), record
    # a file that breaks off inside a record just seems to end
    data.seek(last)
    for record in ArchiveIterator(data, parse_http=False):
        length, reader = record.content_length, record.reader
        if sum(map(len, iter(partial(reader.read, PIECE), b""))) < length:
            raise EOFError("its last record is not complete")


def text(value: str | None) -> str:
    return (value or "").strip("<>").encode("utf-8", "backslashreplace").decode()


def is_image(record: WarcRecord) -> bool:
    """Whether a record is an image by what it says, or, where it says nothing of use, by its first bytes."""
    http = record.http_headers
    if record.record_type == WarcRecordType.resource:
        kind = (record.headers.get("Content-Type") or "").partition(";")[0]
    elif http is None or http.status_code != 200:
        return False
    else:
        kind = record.http_content_type or ""
    if kind.strip().lower() in VAGUE and record.record_type != WarcRecordType.revisit:
        encoded = http is not None and ("Transfer-Encoding" in http or "Content-Encoding" in http)
        return encoded or sniff(record.reader.read(HEAD)) is not None
    return kind.lower().startswith("image/")


class WarcReader:
    def __init__(self, file: str) -> None:
        self._data, self._is_arc = open_file(file), is_arc(file)

    def read(self, place: int, size: int) -> bytes:
        """The payload at ``place``, freed of transfer and content encodings.

        Many archives hold the decoded body beneath headers that still tell of an encoding.
        """
        try:
            return self._read(place, size, "all")
        except OSError:
            return self._read(place, size, "none")

    def _read(self, place: int, size: int, decode: Literal["all", "none"]) -> bytes:
        if self._is_arc:
            *_, record = next(arc.records(self._data, place, size + arc.LONGEST_HEADER, decode))
        else:
            self._data.seek(place)
            record = next(ArchiveIterator(self._data, auto_decode=decode))
        parts, left = [], size + 1
        while left and (part := record.reader.read(min(left, PIECE))):
            parts.append(part)
            left -= len(part)
        if not left:
            raise UnfetchedError(Reason.TOO_LARGE, f"more than {size} bytes")
        return b"".join(parts)

    def close(self) -> None:
        self._data.close()
