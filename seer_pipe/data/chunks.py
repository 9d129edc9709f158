"""Chunks as they lie in the shards: where the bytes of their samples are, and what they must be."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import google_crc32c
import numpy as np
import numpy.typing as npt

from seer_pipe.data.order import Ints, Places
from seer_pipe.shards import ShardIndex

HOLE = 1 << 18  # bytes between two samples of a chunk that are rather left out than read along
AGAIN = 2  # times that an image which fails its checksum is had anew

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
    """The samples of one chunk, in order, and the spans that hold them.

    Lists of plain integers: one of them is taken for each image, and that is quicker from a list.
    """

    def __init__(self, members: Places, index: Callable[[int], ShardIndex]) -> None:
        size = len(members)
        offset, length, crc, height, width = np.zeros((5, size), np.int64)
        #: Why the samples of a shard cannot be found.
        self.lost: dict[int, str] = {}
        for shard in np.unique(members.shard).tolist():
            rows = members.shard == shard
            try:
                of = index(shard)
            except OSError as error:
                self.lost[shard] = str(error)
                continue
            at = members.index[rows]
            offset[rows], length[rows], crc[rows] = of.offset[at], of.length[at], of.crc32c[at]
            height[rows], width[rows] = of.height[at], of.width[at]
        hole = offset[1:] - (offset + length)[:-1]
        together = (np.diff(members.shard) == 0) & (hole >= 0) & (hole <= HOLE)
        number = np.append(0, np.cumsum(~together)) if size else offset
        firsts = np.searchsorted(number, np.arange(number[-1] + 1)) if size else offset
        self.spans = [
            Span(int(members.shard[a]), int(offset[a]), int(offset[b] + length[b] - offset[a]))
            for a, b in zip(firsts.tolist(), np.append(firsts[1:] - 1, size - 1).tolist(), strict=True)
        ]
        self.span: list[int] = number.tolist()
        self.offset: list[int] = offset.tolist()
        self.length: list[int] = length.tolist()
        self.crc: list[int] = crc.tolist()
        self.height: list[int] = height.tolist()
        self.width: list[int] = width.tolist()


class Piece(NamedTuple):
    """Some samples of a chunk, in order, read and checked."""

    images: list[tuple[Encoded | None, int, int]]  # bytes, height, width; (None, 0, 0) where it cannot be read
    reasons: dict[int, str]  # why it cannot be read
    bytes: int


def read_piece(chunk: Chunk, first: int, stop: int, get: Get, again: Get | None) -> Piece:
    """Samples first … stop-1 of ``chunk``, by ``get``.

    What fails its checksum may have been damaged on the way: it is had anew by ``again``, alone.
    """
    images: list[tuple[Encoded | None, int, int]] = []
    reasons: dict[int, str] = {}
    total, at, checksum = 0, first, google_crc32c.value
    while at < stop:
        number = chunk.span[at]
        span, start = chunk.spans[number], chunk.offset[at]
        end = min(stop, bisect_right(chunk.span, number))
        try:
            if span.shard in chunk.lost:
                raise OSError(chunk.lost[span.shard])
            body = get(span, start, chunk.offset[end - 1] + chunk.length[end - 1] - start)
        except OSError as error:
            reasons |= dict.fromkeys(range(at - first, end - first), str(error))
            images += [(None, 0, 0)] * (end - at)
            at = end
            continue
        total += len(body)
        view = np.frombuffer(body, np.uint8)
        for i in range(at, end):
            begin = chunk.offset[i] - start
            image = view[begin : begin + chunk.length[i]]
            if checksum(image) == chunk.crc[i]:
                images.append((image, chunk.height[i], chunk.width[i]))
            elif again is not None and (better := _once_more(chunk, i, span, again)) is not None:
                images.append((better, chunk.height[i], chunk.width[i]))
            else:
                images.append((None, 0, 0))
                reasons[i - first] = f"sample at byte {chunk.offset[i]}: checksum mismatch"
        at = end
    return Piece(images, reasons, total)


def _once_more(chunk: Chunk, i: int, span: Span, get: Get) -> Encoded | None:
    for _ in range(AGAIN):
        try:
            image = np.frombuffer(get(span, chunk.offset[i], chunk.length[i]), np.uint8)
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
