"""One shard in the making. Outcomes arrive in any order and are written in the order of the inputs."""

from __future__ import annotations

import hashlib
import tempfile
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import IO, Any, Protocol

from ingest.budget import Lease
from ingest.image import Stored
from ingest.plan import UnitPlan, beside
from ingest.reasons import Reason
from ingest.sources import IMAGE_FIELDS, Row, Source
from seer_pipe.shards import ShardWriter


@dataclass(frozen=True)
class Rejection:
    """Why an input is not stored."""

    reason: Reason
    detail: str = ""


Outcome = Stored | Rejection


class Sink(Protocol):
    """Takes the outcomes of a unit in order: the samples, and the names of what is rejected."""

    def add(self, place: int, row: Row, source: str, image: Stored) -> None: ...
    def reject(self, source: str, reason: str, detail: str = "") -> None: ...
    def __len__(self) -> int: ...  # outcomes taken
    def commit(self) -> None: ...
    def discard(self) -> None: ...


def columns(image: Stored) -> dict[str, Any]:
    """What a sidecar says of an image, whatever holds its bytes, before the kept columns."""
    return {
        "width": image.width,
        "height": image.height,
        "phash": image.phash,
        **{field.name: getattr(image, field.name) for field in IMAGE_FIELDS},
    }


class ShardSink:
    """A new shard."""

    def __init__(self, plan: UnitPlan, source: Source, number: int) -> None:
        self._plan, self._number = plan, number
        self._places: list[int] = []  # of the samples among the inputs
        self._writer = ShardWriter(plan.store, plan.shard(number), IMAGE_FIELDS)
        self.reject, self.discard = self._writer.reject, self._writer.discard

    def __len__(self) -> int:
        return len(self._writer)

    def add(self, place: int, row: Row, source: str, image: Stored) -> None:
        key = f"{self._number:05d}-{place:06d}"
        self._writer.add(key, image.jpeg, source=source, **columns(image))
        self._places.append(place)

    def commit(self) -> None:
        self._writer.commit(self._plan.kept(self._number, self._places))


MakeSink = Callable[[UnitPlan, Source, int], Sink]


class Unit:
    """Number ``number`` of ``plan``. The tar depends on the outcomes alone, not on when they came.

    Of inputs that are stored as the same bytes the first is kept. What has to wait for an earlier outcome stays in
    memory, or in a temporary file when memory is short.
    """

    def __init__(self, plan: UnitPlan, source: Source, number: int, make_sink: MakeSink) -> None:
        self.number = number
        self.rows = plan.rows(number)
        self._plan, self._source = plan, source
        self._sink = make_sink(plan, source, number)
        self._waiting: dict[int, tuple[Outcome, Lease | None, int | None]] = {}
        self._written = 0
        self._parked = 0  # bytes of images that wait in memory
        self._seen: dict[bytes, int] = {}
        self._spool: IO[bytes] | None = None

    @property
    def complete(self) -> bool:
        return self._written == len(self.rows)

    def put(self, place: int, outcome: Outcome, lease: Lease | None = None, *, room: int = 0) -> list[Outcome]:
        """Take the outcome of row ``place``; the outcomes that were written down now.

        ``room``: bytes of images that may wait in memory; those of more wait in a file, and give back their lease.
        """
        spooled = None
        if isinstance(outcome, Stored) and place != self._written:
            if self._parked + len(outcome.jpeg) > room:
                spooled = self._spill(outcome.jpeg)
                outcome = replace(outcome, jpeg=b"")
            elif lease is not None:
                lease.park(len(outcome.jpeg))
            self._parked += len(outcome.jpeg)
        if lease is not None and (spooled is not None or isinstance(outcome, Rejection)):
            lease.release()
            lease = None
        self._waiting[place] = outcome, lease, spooled
        written = []
        while (waiting := self._waiting.pop(self._written, None)) is not None:
            outcome, lease, spooled = waiting
            if isinstance(outcome, Stored):
                if self._written != place:
                    self._parked -= len(outcome.jpeg)
                if spooled is not None:
                    outcome = replace(outcome, jpeg=self._fetch(spooled))
            written.append(self._write(self._written, outcome))
            self._written += 1
            if lease is not None:
                lease.release()
        return written

    def _write(self, place: int, outcome: Outcome) -> Outcome:
        row = self.rows[place]
        shown = self._source.shown(row)
        if isinstance(outcome, Stored):
            digest = hashlib.sha256(outcome.jpeg).digest()
            first = self._seen.setdefault(digest, place)
            if first == place:
                self._sink.add(place, row, shown, outcome)
                return outcome
            outcome = Rejection(Reason.DUPLICATE, f"of {self._source.shown(self.rows[first])}")
        self._sink.reject(shown, outcome.reason, outcome.detail)
        return outcome

    def _spill(self, data: bytes) -> int:
        """Where ``data`` stands in the temporary file, its length before it."""
        if self._spool is None:
            self._spool = tempfile.TemporaryFile(dir=beside(self._plan.store))  # noqa: SIM115, closed in discard
        start = self._spool.seek(0, 2)
        self._spool.write(len(data).to_bytes(8, "little") + data)
        return start

    def _fetch(self, start: int) -> bytes:
        assert self._spool is not None
        self._spool.seek(start)
        return self._spool.read(int.from_bytes(self._spool.read(8), "little"))

    def commit(self) -> None:
        """Make the shard visible, whole: every input is stored or rejected, or nothing of it is committed."""
        if len(self._sink) != len(self.rows):
            raise RuntimeError(f"unit {self.number}: {len(self._sink)} outcomes of {len(self.rows)} inputs")
        self._sink.commit()
        self.discard()

    def discard(self) -> None:
        """Leave nothing behind but what was committed."""
        self._sink.discard()
        if self._spool is not None:
            with suppress(OSError):
                self._spool.close()
