"""Chunks as they lie in the shards: where the bytes of their samples are, and what they must be."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import google_crc32c
import numpy as np
import numpy.typing as npt

from seer_pipe.data.order import Ints, Places
from seer_pipe.data.rows import Indexes
from seer_pipe.data.sources import Order, Shards
from seer_pipe.data.threads import Kept
from seer_pipe.shards import ShardIndex

HOLE = 1 << 18  # bytes between two samples of a chunk that are skipped rather than read along
AGAIN = 2  # how often an image is read again after a checksum mismatch

Encoded = npt.NDArray[np.uint8]  # an image as it stands in the store


@dataclass(frozen=True)
class Span:
    """Bytes of one shard that are read at once."""

    shard: int
    start: int
    length: int


#: Bytes of a span, from a place in the shard, of a length; an ``OSError`` where they cannot be read.
Get = Callable[[Span, int, int], bytes]


class Chunk:
    """The samples of one chunk, in order, and the spans that hold them."""

    def __init__(self, members: Places, index: Callable[[int], ShardIndex]) -> None:
        size = len(members)
        offset, length, crc, height, width = np.zeros((5, size), np.int64)
        #: Why the samples of a shard cannot be found.
        self.lost: dict[int, str] = {}
        edges = [0, *(np.flatnonzero(np.diff(members.shard)) + 1).tolist(), size]
        for a, b in pairwise(edges):
            shard = int(members.shard[a])
            try:
                of = index(shard)
            except OSError as error:
                self.lost[shard] = str(error)
                continue
            at = members.index[a:b]
            offset[a:b], length[a:b], crc[a:b] = of.offset[at], of.length[at], of.crc32c[at]
            height[a:b], width[a:b] = of.height[at], of.width[at]
        end = offset + length
        hole = offset[1:] - end[:-1]
        apart = (np.diff(members.shard) != 0) | (hole < 0) | (hole > HOLE)
        #: The number of the first sample of each span, and of all samples.
        self.edges: list[int] = [0, *(np.flatnonzero(apart) + 1).tolist(), size]
        self.offset, self.end, self.crc, self.height, self.width = offset, end, crc, height, width
        self.spans = [
            Span(int(members.shard[a]), int(offset[a]), int(end[b - 1] - offset[a])) for a, b in pairwise(self.edges)
        ]

    def __len__(self) -> int:
        return len(self.offset)


class Chunks:
    """The chunks of a plan that were used last, at most ``most``, and the indexes of some shards."""

    def __init__(self, shards: Shards, plan: Order, most: int) -> None:
        self._plan, self._index = plan, Indexes(shards)
        self._chunks: Kept[int, Chunk] = Kept(most)

    def get(self, number: int) -> Chunk:
        return self._chunks.get(number, lambda number: Chunk(self._plan.members(number), self._index.get))


@dataclass(slots=True)
class Piece:
    """Some samples of a chunk, in order, read and checked."""

    images: list[Encoded | None]  # None where it cannot be read
    height: list[int]  # pixels; 0 where it cannot be read
    width: list[int]
    reasons: dict[int, str]  # why it cannot be read
    bytes: int


def read_piece(chunk: Chunk, first: int, stop: int, get: Get, again: Get | None) -> Piece:
    """Samples first … stop-1 of ``chunk``, by ``get``.

    What fails its checksum may have been damaged in transfer: it is read again by ``again``, alone.
    """
    images: list[Encoded | None] = []
    reasons: dict[int, str] = {}
    total, at = 0, first
    while at < stop:
        number = bisect_right(chunk.edges, at)
        span, start = chunk.spans[number - 1], int(chunk.offset[at])
        end = min(stop, chunk.edges[number])
        try:
            if span.shard in chunk.lost:
                raise OSError(chunk.lost[span.shard])
            body = get(span, start, int(chunk.end[end - 1]) - start)
        except OSError as error:
            reasons |= dict.fromkeys(range(at - first, end - first), str(error))
            images += [None] * (end - at)
        else:
            total += len(body)
            view = np.frombuffer(body, np.uint8)
            edges = zip((chunk.offset[at:end] - start).tolist(), (chunk.end[at:end] - start).tolist(), strict=True)
            read = [view[a:b] for a, b in edges]
            sums = list(map(google_crc32c.value, read))
            images += read
            if sums != chunk.crc[at:end].tolist():
                for i in [i for i in range(at, end) if sums[i - at] != chunk.crc[i]]:
                    images[i - first] = None if again is None else _once_more(chunk, i, span, again)
                    if images[i - first] is None:
                        reasons[i - first] = f"sample at byte {chunk.offset[i]}: checksum mismatch"
        at = end
    height, width = chunk.height[first:stop].tolist(), chunk.width[first:stop].tolist()
    for i in reasons:
        height[i] = width[i] = 0
    return Piece(images, height, width, reasons, total)


def _once_more(chunk: Chunk, i: int, span: Span, get: Get) -> Encoded | None:
    for _ in range(AGAIN):
        try:
            start, end = int(chunk.offset[i]), int(chunk.end[i])
            image = np.frombuffer(get(span, start, end - start), np.uint8)
        except OSError:
            return None
        if google_crc32c.value(image) == chunk.crc[i]:
            return image
    return None


@dataclass
class Samples:
    """The images at n places, in their order, as they stand in the store."""

    places: Places
    data: list[Encoded | None]  # None where it cannot be read
    height: Ints  # [n] pixels; 0 where it cannot be read
    width: Ints
    reasons: dict[int, str]  # why it cannot be read, by row

    def __len__(self) -> int:
        return len(self.data)

    def take(self, rows: list[int]) -> Samples:
        """Some of them."""
        reasons = {i: self.reasons[row] for i, row in enumerate(rows) if row in self.reasons}
        return Samples(
            self.places[rows], [self.data[row] for row in rows], self.height[rows], self.width[rows], reasons
        )

    def put(self, rows: Ints, others: Samples) -> None:
        """Put ``others`` in the place of ``rows``, one each."""
        self.places[rows] = others.places
        self.height[rows], self.width[rows] = others.height, others.width
        for i, row in enumerate(rows.tolist()):
            self.data[row] = others.data[i]
            self.reasons.pop(row, None)
            if i in others.reasons:
                self.reasons[row] = others.reasons[i]
