"""Web archives: the images in the responses of WARC and ARC files, Common Crawl's among them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from types import TracebackType
from typing import NamedTuple

import pyarrow as pa

from ingest.budget import Lease
from ingest.files import expand, labels, listing, open_file
from ingest.formats import sniff
from ingest.reasons import Reason, UnfetchedError, said
from ingest.sources import FILE, PROBLEM, InFiles, Row, demand_no_problem, listed
from ingest.sources.inflate import Address, inflated
from ingest.sources.payload import STREAMS, decoded, response
from ingest.sources.readers import DAMAGE, Readers
from ingest.sources.records import Record, next_record

SUFFIXES = (".warc", ".warc.gz", ".warc.zst", ".arc", ".arc.gz")
BATCH = 10_000  # rows of a table
LONGEST_HEAD = 64 << 10  # bytes of an HTTP head
START = 8 << 10  # bytes looked at of a record; longer heads are read further
HEAD = 512  # bytes of a body by which it is judged
KINDS = ("response", "resource", "conversion", "revisit")  # of records that may be images
VAGUE = ("", "application/octet-stream", "binary/octet-stream", "unk")  # types that say nothing
KEPT_FIELDS = (pa.field("date", pa.string()),)
SCHEMA = pa.schema(
    [
        ("source", pa.string()),
        ("size", pa.int64()),
        ("place", pa.int64()),
        ("skip", pa.int64()),
        *listed(KEPT_FIELDS),
        *PROBLEM,
        FILE,
    ]
)


class Capture(NamedTuple):
    """One image of a WARC file, or what is wrong with it."""

    url: str
    size: int = 0  # bytes of the record, before any decoding
    place: int = 0  # of the record: see Address
    skip: int = 0
    date: str | None = None  # ISO 8601
    problem: Reason | None = None
    detail: str | None = None


class WarcSource(InFiles):
    """The images of the file, pattern or folder ``where``: responses with status 200, resources and conversions that
    say so or begin as one. ``source`` is their URL, and the sidecar keeps their ``date``.

    A revisit holds no image, and is rejected. The rest of a file that breaks off or cannot be read is one rejected
    input; so are, with their number, all records of a file that are no images.
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
        place = Place(Address(row["place"], row["skip"]), row["source"])
        return await self._readers.read(row["file"], place, self._max_bytes)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._readers.close()


def captures(file: str, label: str) -> Iterator[Capture]:
    """The images in a file, in order, up to where it is damaged; then what was passed over."""
    passed: Counter[str] = Counter()
    try:
        with open_file(file) as data:
            stream = inflated(data)
            while (record := next_record(stream)) is not None:
                start = b""
                if record.kind in KINDS:
                    start = stream.read(min(record.length, START))
                    if response(start) is None:  # a long head, or none
                        start += stream.read(min(record.length - len(start), LONGEST_HEAD))
                    if (other := no_image(record, start)) is None:
                        revisit = record.kind == "revisit"
                        yield Capture(
                            record.url,
                            record.length,
                            *record.address,
                            record.date,
                            Reason.REVISIT if revisit else None,
                            f"of {record.says.get('warc-refers-to-target-uri', 'a record')}" if revisit else None,
                        )
                    else:
                        passed[other] += 1
                stream.skip(record.length - len(start))
    except DAMAGE as error:
        yield Capture(f"{label}/…", problem=Reason.UNREADABLE, detail=f"damaged from here on: {said(error)}")
    if passed:
        kinds = ", ".join(f"{number} {kind}" for kind, number in passed.most_common(5))
        yield Capture(label, problem=Reason.PASSED_OVER, detail=f"{passed.total()} records: {kinds}")


def no_image(record: Record, start: bytes) -> str | None:
    """What a record that begins with ``start`` is, if no image; None where it says that it is one, or begins so."""
    http, declared = response(start), record.says.get("content-type", "")
    if record.kind in ("response", "revisit") and http is not None:
        if record.kind == "response" and http.status != 200:
            return f"status {http.status}"
        declared = http.head.get("content-type", "")
    declared = declared.partition(";")[0].strip().lower()
    identified = record.says.get("warc-identified-payload-type", "").lower()
    if declared.startswith("image/") or identified.startswith("image/"):
        return None
    head, body = (http.head, start[http.body :]) if http is not None else ({}, start)
    hidden = any(name in head.get("content-encoding", "") for name in STREAMS)  # such a start cannot be looked at
    if record.kind != "revisit" and (sniff(decoded(body, {}, HEAD)) or (hidden and declared in VAGUE)):
        return None
    return declared or "of no type"


class Place(NamedTuple):
    """Where a record is, and whose it is."""

    address: Address
    url: str


class WarcReader:
    def __init__(self, file: str) -> None:
        self._data = open_file(file)
        self._stream = inflated(self._data)

    def read(self, place: Place, size: int) -> bytes:
        """The payload of the record at ``place``. ValueError where another one is there."""
        self._stream.go(place.address)
        record = next_record(self._stream)
        if record is None or record.url != place.url:
            raise ValueError(f"another record is at this place now: {record.url if record else 'none'}")
        content = self._stream.read(min(record.length, LONGEST_HEAD + size + 1))
        if len(content) < min(record.length, LONGEST_HEAD + size + 1):
            raise EOFError("the record is not complete")
        http = response(content) if record.kind == "response" else None
        body = decoded(content[http.body :], http.head, size) if http is not None else content
        if len(body) > size:
            raise UnfetchedError(Reason.TOO_LARGE, f"more than {size} bytes")
        return body

    def close(self) -> None:
        self._data.close()
