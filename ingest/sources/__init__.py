"""Where images come from. A source lists its inputs once, in a fixed order, and later fetches any one of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Protocol, Self

import pyarrow as pa

from ingest.budget import Lease
from ingest.reasons import Reason, UnfetchedError
from seer_pipe.errors import UserError
from seer_pipe.shards import SIDECAR_SCHEMA

Row = Mapping[str, Any]  # a row of the list of inputs

#: Columns of the sidecar that say what an image was before it was stored.
IMAGE_FIELDS = (
    pa.field("format", pa.string()),  # as Pillow names it
    pa.field("original_width", pa.int32()),  # pixels, by the header, before orientation
    pa.field("original_height", pa.int32()),
    pa.field("reencoded", pa.bool_()),
)
#: Columns of the sidecar that say what a clip is, and what it was cut from.
CLIP_FIELDS = (
    pa.field("clip", pa.int32()),  # its number in the source
    pa.field("start", pa.float64()),  # s in the source
    pa.field("duration", pa.float64()),  # s
    pa.field("frame_rate", pa.float64()),  # 1/s; null without video
    pa.field("frames", pa.int32()),
    pa.field("audio_rate", pa.int32()),  # Hz; null without sound
    pa.field("format", pa.string()),  # container and codecs, as FFmpeg names them
    pa.field("original_width", pa.int32()),  # pixels, as coded, before rotation; 0 without video
    pa.field("original_height", pa.int32()),
)
#: Columns of the sidecar that say what a track is, and what it was cut from.
TRACK_FIELDS = (
    pa.field("clip_key", pa.string()),  # of the clip in its set
    pa.field("track", pa.int32()),  # its number in the clip
    pa.field("frame", pa.int32()),  # number of the first picture's in the clip
    pa.field("frames", pa.int32()),  # from the first picture's to the last's
    pa.field("distance", pa.float64()),  # pixels of the clip's frames, from patch to patch
)
#: Media that are cut into clips.
CLIPS = ("video", "audio")
#: Column of the sidecar that is 0 for the first of the samples that one input became.
NUMBER = {**dict.fromkeys(CLIPS, "clip"), "pair": "track"}
#: How the kept columns begin in the list of inputs. None of its own does, so that theirs can have any name.
KEPT = "kept:"


def kept_fields(fields: Iterable[pa.Field], media: str = "image") -> list[pa.Field]:
    """The columns of a list that are to be kept as the sidecar has them. UserError where two have one name.

    What describes the stored image or clip there keeps its name, and a kept column of that name gets another.
    """
    taken = {*SIDECAR_SCHEMA.names, *(field.name for field in (IMAGE_FIELDS if media == "image" else CLIP_FIELDS))}
    kept = [pa.field(f"input_{f.name}" if f.name.lower() in taken else f.name, f.type) for f in fields]
    if twice := [name for name, count in Counter(field.name for field in kept).items() if count > 1]:
        raise UserError(f"--keep-columns: {', '.join(twice)} would be in the sidecar more than once")
    return kept


def listed(kept: Iterable[pa.Field]) -> list[pa.Field]:
    """The kept columns as the list of inputs has them."""
    return [field.with_name(KEPT + field.name) for field in kept]


#: Column of the file that holds an input: its path in the file system's own bytes (not all are text), or its URL.
FILE = pa.field("file", pa.binary())
#: Columns of a list that knows beforehand why an input is of no use.
PROBLEM = (pa.field("problem", pa.string()), pa.field("detail", pa.string()))


class Source(Protocol):
    """A list of inputs.

    ``identity`` distinguishes this list from any other, in plain values. ``kept`` are columns of the list that the
    sidecar keeps; they go there as they are, of any type, never through Python objects. ``unique`` says that equal
    ``source`` values mean the same bytes, so that all but the first are dropped.
    """

    identity: Mapping[str, Any]
    kept: Sequence[pa.Field]
    unique: bool

    def tables(self) -> Iterator[pa.Table]:
        """All inputs in order, in tables of one schema: ``source`` (text, shown to people), where known ``size``
        (bytes) and ``problem``, the ``kept`` columns as ``listed``, and whatever ``fetch`` needs."""
        ...

    def shown(self, row: Row) -> str:
        """The input's name as it is written down: its ``source`` without secrets."""
        ...

    def note(self, inputs: int) -> str:
        """What a person should know of a list of ``inputs`` rows that an earlier run fixed; mostly nothing."""
        ...

    def fetch_order(self, rows: Sequence[Row]) -> Sequence[int]:
        """The numbers of ``rows`` in the order in which they are best fetched."""
        ...

    async def fetch(self, row: Row, lease: Lease) -> bytes:
        """The bytes of one input; UnfetchedError where they cannot be had, LaterError where they may be had later.
        ``lease`` is notified before they are."""
        ...

    async def __aenter__(self) -> Self: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...


class Plain:
    """What most sources have in common: nothing kept, nothing unique, nothing to open or close."""

    identity: Mapping[str, Any]
    kept: Sequence[pa.Field] = ()
    unique = False

    def shown(self, row: Row) -> str:
        return str(row["source"])

    def note(self, inputs: int) -> str:
        return ""

    def fetch_order(self, rows: Sequence[Row]) -> Sequence[int]:
        return range(len(rows))

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None


class InFiles(Plain):
    """Images in files that hold many: by ``file`` and ``place`` of each row, they are read from front to back."""

    def fetch_order(self, rows: Sequence[Row]) -> Sequence[int]:
        return sorted(range(len(rows)), key=lambda number: (rows[number]["file"], rows[number]["place"]))


def demand_no_problem(row: Row) -> None:
    """Raise what the list already knows to be wrong with an input."""
    if row["problem"]:
        raise UnfetchedError(Reason[row["problem"].upper()], row["detail"] or "")
