"""One shard in the making. Outcomes arrive in any order and are written in the order of the inputs."""

from __future__ import annotations

import json
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, Protocol

import pyarrow as pa

from ingest.budget import Lease
from ingest.image import Stored
from ingest.media import Clips
from ingest.plan import UnitPlan, beside
from ingest.reasons import Reason
from ingest.sources import CLIP_FIELDS, IMAGE_FIELDS, TRACK_FIELDS, Row, Source
from ingest.tracks import Tracks
from ingest.workers import Made
from seer_pipe.shards import ShardWriter


@dataclass(frozen=True)
class Rejection:
    """Why an input is not stored."""

    reason: Reason
    detail: str = ""


Outcome = Made | Rejection


class Sink(Protocol):
    """Takes the outcomes of a unit in order: what the inputs became, and the names of what is rejected."""

    def add(self, place: int, row: Row, source: str, made: Any, /) -> None: ...
    def reject(self, source: str, reason: str, detail: str = "") -> None: ...
    def __len__(self) -> int: ...  # outcomes taken, of inputs
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
    """A new shard of images."""

    fields: Sequence[pa.Field] = IMAGE_FIELDS

    def __init__(self, plan: UnitPlan, source: Source, number: int) -> None:
        self._plan, self._number = plan, number
        self._places: list[int] = []  # of the samples among the inputs
        self._writer = ShardWriter(plan.store, plan.shard(number), self.fields)
        self.reject, self.discard = self._writer.reject, self._writer.discard

    def __len__(self) -> int:
        return len(self._writer)

    def add(self, place: int, row: Row, source: str, image: Any) -> None:
        self._writer.add(self._key(place), image.jpeg, source=source, **columns(image))
        self._places.append(place)

    def _key(self, place: int) -> str:
        return f"{self._number:05d}-{place:06d}"

    def commit(self) -> None:
        self._writer.commit(self._plan.kept(self._number, self._places))


class _SeveralSink(ShardSink):
    """A new shard of several samples of each input, one after the other. Implementations bring ``samples``."""

    def __len__(self) -> int:
        return len(self._writer) - len(self._places) + len(set(self._places))

    def samples(self, row: Row, source: str, made: Any) -> Iterator[tuple[dict[str, bytes], dict[str, Any]]]:
        """Members of each, and what the sidecar says of it."""
        raise NotImplementedError

    def add(self, place: int, row: Row, source: str, made: Any) -> None:
        for number, (members, about) in enumerate(self.samples(row, source, made)):
            self._writer.add_members(f"{self._key(place)}-{number:04d}", members, **about)
            self._places.append(place)


class ClipSink(_SeveralSink):
    """A new shard of clips."""

    fields = CLIP_FIELDS

    def samples(self, row: Row, source: str, made: Clips) -> Iterator[tuple[dict[str, bytes], dict[str, Any]]]:
        came_as = {name: getattr(made, name) for name in ("format", "original_width", "original_height")}
        for number, clip in enumerate(made.clips):
            about = {"source": source, "clip": number, **clip.about}
            members = {**clip.members, "json": _json(about | {"sha256": clip.sha256})}
            yield members, {"phash": clip.phash, **about, **came_as}


class TrackSink(_SeveralSink):
    """A new shard of tracks."""

    fields = TRACK_FIELDS

    def samples(self, row: Row, source: str, made: Tracks) -> Iterator[tuple[dict[str, bytes], dict[str, Any]]]:
        for number, track in enumerate(made.tracks):
            about = {"source": source, "clip_key": row["key"], "track": number, **track.about}
            members = {**track.members, "json": _json(about | {"boxes": track.places, "sha256": track.sha256})}
            yield members, {"width": track.side, "height": track.side, "phash": None, **about}


def _json(about: dict[str, Any]) -> bytes:
    return json.dumps(about, ensure_ascii=False).encode("utf-8", "backslashreplace")


#: Of new shards, by what their samples are.
SINKS: Mapping[str, type[ShardSink]] = {"image": ShardSink, "video": ClipSink, "audio": ClipSink, "pair": TrackSink}
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
        self._waiting: dict[int, tuple[Outcome | None, Lease | None, int | None]] = {}
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
        if not isinstance(outcome, Rejection) and place != self._written:
            if self._parked + outcome.size > room:
                spooled = self._spill(outcome)
            elif lease is not None:
                lease.park(outcome.size)
            self._parked += outcome.size
        if lease is not None and (spooled is not None or isinstance(outcome, Rejection)):
            lease.release()
            lease = None
        self._waiting[place] = outcome if spooled is None else None, lease, spooled
        written = []
        while (waiting := self._waiting.pop(self._written, None)) is not None:
            kept, lease, spooled = waiting
            outcome = self._fetch(spooled) if kept is None else kept
            if not isinstance(outcome, Rejection) and self._written != place:
                self._parked -= outcome.size
            written.append(self._write(self._written, outcome))
            self._written += 1
            if lease is not None:
                lease.release()
        return written

    def _write(self, place: int, outcome: Outcome) -> Outcome:
        row = self.rows[place]
        shown = self._source.shown(row)
        if not isinstance(outcome, Rejection):
            first = self._seen.setdefault(outcome.digest, place)
            if first == place:
                self._sink.add(place, row, shown, outcome)
                return outcome
            outcome = Rejection(Reason.DUPLICATE, f"of {self._source.shown(self.rows[first])}")
        self._sink.reject(shown, outcome.reason, outcome.detail)
        return outcome

    def _spill(self, made: Made) -> int:
        """Where ``made`` stands in the temporary file."""
        if self._spool is None:
            self._spool = tempfile.TemporaryFile(dir=beside(self._plan.store))  # noqa: SIM115, closed in discard
        start = self._spool.seek(0, 2)
        pickle.dump(made, self._spool)
        return start

    def _fetch(self, start: int | None) -> Made:
        assert self._spool is not None
        assert start is not None
        self._spool.seek(start)
        made: Made = pickle.load(self._spool)
        return made

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
