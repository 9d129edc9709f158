"""The bytes of the images, in the order of a plan.

Chunks are read in *pieces*: as many samples of a chunk at once as memory allows for. From an object store that is the
whole chunk, if the rank holds few enough lanes; from a folder, or from the cache on the node's disk, half a megabyte.
Reads are begun before they are needed, every payload is checked against its CRC32C, and a piece is let go after its
last sample. What cannot be read is not raised but handed on, for the loader to replace.

What the page cache holds is read at once, by the caller's own thread. Threads read the rest, in the trainer's process:
reading lets go of Python's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

import numpy as np

from seer_pipe.data.cache import Cache
from seer_pipe.data.chunks import Chunk, Get, Piece, Samples, read_piece
from seer_pipe.data.fetch import Folder, Remote, ThroughCache
from seer_pipe.data.order import Ints, Places
from seer_pipe.data.sources import Order, Shards
from seer_pipe.data.threads import Kept, Pool, at_once
from seer_pipe.shards import ShardIndex

REQUESTS = 32  # to an object store, at a time
DISK_PIECE = 1 << 19  # bytes: what comes from a disk is read in no more at once
FURTHEST = 256  # steps that reading may be ahead
SWEEP = 16  # steps, after which pieces are looked for that no lane is in any more
INDEXED = 4_000_000  # samples whose index is kept: 24 bytes each
WORTH_KEEPING = 31 << 20  # bytes; see Stream


class Stream:
    """Reads the samples at ``slots`` of one step after another, with ``threads``.

    ``batches(first, last)`` yields ``Samples``, one a slot, for every step of [first, last). It reads at least
    ``ahead`` steps in advance, and further while what it holds is less than ``memory`` bytes; only what the steps in
    ``ahead`` and open windows of lanes need may go beyond. ``read(places)`` reads any samples at once.
    """

    def __init__(
        self,
        shards: Shards,
        plan: Order,
        slots: Ints,
        *,
        threads: int = 8,
        ahead: int = 2,
        memory: int = 1 << 30,
        cache: Cache | None = None,
    ) -> None:
        self._shards = shards
        self._plan, self._slots, self._ahead, self._memory = plan, slots, ahead, memory
        share = plan.batch // plan.lanes
        lanes = len(np.unique(slots // share))
        in_use = 2 * lanes * (plan.window if share > 1 else 1)  # chunks, at a time
        mean = max(1.0, float(shards.bytes.sum()) / max(1, len(shards)))  # bytes a sample
        self.remote: Remote | None = None
        self._cached: ThroughCache | None = None
        self._get: Get
        self._at_once: Get | None = None
        if shards.is_local():
            folder = Folder(shards, 2 * DISK_PIECE)
            self._get, self._at_once, self._again, most = folder.get, folder.at_once, None, DISK_PIECE
        else:
            self.remote = Remote(shards)
            self._get, self._again, most = self.remote.get, self.remote.get, memory
            threads = max(threads, REQUESTS)
            if cache is not None:
                self._cached = ThroughCache(shards, self.remote, cache, in_use + 4)
                self._get, most = self._cached.get, DISK_PIECE
        self._size = int(np.clip(min(most, memory // (2 * lanes)) / mean, 1, plan.chunk))  # samples a piece
        self._parts = -(-plan.chunk // self._size)  # pieces a chunk
        self._guess = int(self._size * mean)  # bytes a piece
        # A lane that has left a piece does not come back to it, but inside its window.
        self._stale = 2 * plan.window * plan.chunk // share if share > 1 else 0
        counts = max(1, len(shards) // max(1, len(shards.counts)))
        self._index: Kept[int, ShardIndex] = Kept(max(16, INDEXED // counts))
        self._chunks: Kept[int, Chunk] = Kept(in_use + REQUESTS)
        self._pieces: dict[int, _Held] = {}
        self._held = 0  # bytes, of those
        self._pool, self._threads = Pool(threads, "stream"), threads
        # glibc gives freed memory back to the system at once, and gets it anew for a good part of a read's time,
        # unless it has seen a large block freed: then it keeps some of its size.
        bytearray(WORTH_KEEPING)

    def batches(self, first: int, last: int) -> Iterator[Samples]:
        self._pieces.clear()
        self._held = 0
        located = self._located(first, last)
        coming: deque[_Step] = deque()
        while True:
            depth = self._ahead + 1
            if self._has_room():
                depth = max(depth, min(len(coming) + 2, FURTHEST))
            for step in islice(located, max(0, depth - len(coming))):
                self._begin(step)
                coming.append(step)
            if not coming:
                return
            yield self._finish(coming.popleft())

    def read(self, places: Places) -> Samples:
        """The samples at ``places``, those of one piece with one read."""
        rows: dict[int, list[int]] = {}
        for row, key in enumerate(self._keys(places).tolist()):
            rows.setdefault(key, []).append(row)
        futures: dict[int, Future[Piece]] = {}
        at = places.inside.copy()
        for key, group in rows.items():
            first, last = int(places.inside[group].min()), int(places.inside[group].max())
            future = self._pool.submit(self._fetch, key // self._parts, first, last + 1)
            futures |= dict.fromkeys(group, future)
            at[group] -= first
        return _samples(places, [futures[row].result() for row in range(len(places))], at.tolist())

    def close(self) -> None:
        self._pool.close()
        self._pieces.clear()
        if self._cached is not None:
            self._cached.close()

    def _located(self, first: int, last: int) -> Iterator[_Step]:
        """The steps to be read; many are computed at once, which costs little more than one."""
        n = len(self._slots)
        block = max(1, 8192 // n)
        for start in range(first, last, block):
            steps = np.arange(start, min(start + block, last))
            places = self._plan.locate(np.repeat(steps, n), np.tile(self._slots, len(steps)))
            keys, at = self._keys(places).tolist(), (places.inside % self._size).tolist()
            for step, row in zip(steps.tolist(), range(0, len(keys), n), strict=True):
                rows = slice(row, row + n)
                yield _Step(step, places[rows], keys[rows], at[rows])

    def _keys(self, places: Places) -> Ints:
        """The numbers of the pieces that hold the samples."""
        return places.chunk * self._parts + places.inside // self._size

    def _has_room(self) -> bool:
        """Whether to read further ahead: of a store, whose answers take long; a disk's cache is read ahead already."""
        if self.remote is None or self._pool.waiting() >= self._threads:
            return False
        return self._held + self._threads * self._guess < self._memory

    def _begin(self, step: _Step) -> None:
        """Set the reads of one step going."""
        for key in step.keys:
            piece = self._pieces.get(key)
            if piece is None:
                piece = self._pieces[key] = self._bring(key)
            piece.step = step.number
            step.pieces.append(piece)

    def _bring(self, key: int) -> _Held:
        """Have a piece: at once, where its chunk is known and the page cache has it, or by a thread."""
        chunk, part = divmod(key, self._parts)
        first, stop = part * self._size, (part + 1) * self._size
        piece = _Held(key, self._guess)
        self._held += self._guess
        if self._at_once is not None:
            with suppress(BlockingIOError):
                self._arrived(piece, self._read(chunk, first, stop, at_once, self._at_once, None))
                return piece
        piece.future = self._pool.submit(self._fetch, chunk, first, stop)
        return piece

    def _finish(self, step: _Step) -> Samples:
        contents = []
        for piece in step.pieces:
            content = piece.content
            if content is None:
                content = self._arrived(piece, piece.future.result())
            contents.append(content)
            piece.left -= 1
            if piece.left == 0:
                self._drop(piece)
        if step.number % SWEEP == 0:  # what was left before its end: at an edge of a lane, say
            for piece in [piece for piece in self._pieces.values() if piece.step < step.number - self._stale]:
                self._drop(piece)
        return _samples(step.places, contents, step.at)

    def _arrived(self, piece: _Held, content: Piece) -> Piece:
        piece.content, piece.left = content, len(content.images)
        self._held += content.bytes - piece.bytes
        piece.bytes = content.bytes
        return content

    def _drop(self, piece: _Held) -> None:
        if self._pieces.get(piece.key) is piece:
            self._held -= self._pieces.pop(piece.key).bytes

    def _fetch(self, chunk: int, first: int, stop: int) -> Piece:
        return self._read(chunk, first, stop, self._shards.index, self._get, self._again)

    def _read(
        self, number: int, first: int, stop: int, index: Callable[[int], ShardIndex], get: Get, again: Get | None
    ) -> Piece:
        def make(number: int) -> Chunk:
            return Chunk(self._plan.members(number), lambda shard: self._index.get(shard, index))

        chunk = self._chunks.get(number, make)
        return read_piece(chunk, first, min(stop, len(chunk)), get, again)


class _Held:
    """A piece that is there or on its way."""

    __slots__ = ("bytes", "content", "future", "key", "left", "step")

    def __init__(self, key: int, guess: int) -> None:
        self.key, self.bytes = key, guess
        self.future: Future[Piece]
        self.content: Piece | None = None
        self.left = 0  # samples that were not taken yet
        self.step = 0  # the last that takes of it, as far as is known


@dataclass
class _Step:
    """What is read for one step: a place, the number of a piece, and the place in it, for each slot."""

    number: int
    places: Places
    keys: list[int]
    at: list[int]
    pieces: list[_Held] = field(default_factory=list)


def _samples(places: Places, pieces: list[Piece], at: list[int]) -> Samples:
    """Number ``at`` [n] of each of the n ``pieces``."""
    images = [piece.images[i] for piece, i in zip(pieces, at, strict=True)]
    height = [piece.height[i] for piece, i in zip(pieces, at, strict=True)]
    width = [piece.width[i] for piece, i in zip(pieces, at, strict=True)]
    reasons = {}
    if 0 in height:  # as where an image cannot be read; hardly ever, so that the others need not be looked at
        pairs = enumerate(zip(pieces, at, strict=True))
        reasons = {row: piece.reasons[i] for row, (piece, i) in pairs if i in piece.reasons}
    return Samples(places, images, np.array(height, np.int64), np.array(width, np.int64), reasons)
