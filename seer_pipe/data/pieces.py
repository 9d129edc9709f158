"""Pieces of chunks, had from an object store or through the cache on the node's disk, and held while they are used.

A piece is as many samples of a chunk as memory allows for: the whole chunk, if the rank holds few enough lanes; from
the cache, half a megabyte. It is let go after its last sample.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future

import numpy as np

from seer_pipe.data.cache import Cache
from seer_pipe.data.chunks import Chunks, Get, Piece, Samples, read_piece
from seer_pipe.data.fetch import Remote, ThroughCache
from seer_pipe.data.order import Ints, Places
from seer_pipe.data.sources import Order, Shards
from seer_pipe.data.threads import Pool

REQUESTS = 32  # to an object store, at a time
CACHE_PIECE = 1 << 19  # bytes: what comes from the cache is read in no more at once
HELD = 0.8  # share of the memory that the pieces which the tracks are in may take
SWEEP = 16  # steps, after which pieces are looked for that no lane is in any more
WORTH_KEEPING = 31 << 20  # bytes; see Pieces


def piece_size(chunk: int, tracks: int, mean: float, memory: float, *, cached: bool) -> int:
    """Samples that are read at once by a rank of so many ``tracks``, of ``mean`` bytes each, with ``memory`` bytes.

    One piece of every track is held, in four fifths of it; the rest is for those that are read ahead.
    """
    most = min(CACHE_PIECE, memory) if cached else memory
    return int(np.clip(min(most, HELD * memory / tracks) / mean, 1, chunk))


class Pieces:
    """Reads ahead, by the threads of ``pool``, while what is held is less than ``memory`` bytes.

    ``tracks``: that are read, a chunk of each at a time; ``every``: one step in so many is read.
    """

    def __init__(
        self, shards: Shards, plan: Order, tracks: int, pool: Pool, memory: int, cache: Cache | None, every: int = 1
    ) -> None:  # fmt: skip
        self._pool, self._memory = pool, memory
        self._chunks = Chunks(shards, plan, 2 * tracks + REQUESTS)
        self._remote = Remote(shards)
        self._cached = None if cache is None else ThroughCache(shards, self._remote, cache, 2 * tracks + 4)
        self._get: Get = self._remote.get if self._cached is None else self._cached.get
        mean = max(1.0, float(shards.bytes.sum()) / max(1, len(shards)))  # bytes per sample
        self._size = piece_size(plan.chunk, tracks, mean, memory, cached=cache is not None)
        self._parts = -(-plan.chunk // self._size)  # pieces a chunk
        self._guess = int(self._size * mean)  # bytes a piece
        # A track takes of its piece once a round, of as many steps as it has draws for the lane.
        self._stale = -(-2 * plan.window * plan.lanes // plan.batch) * every
        self._swept = 0  # when pieces were looked for that no lane is in any more, in SWEEPs
        self._pieces: dict[int, _Held] = {}
        self._held = 0  # bytes, of those
        # glibc gives freed memory back to the system at once, and getting it again takes a good part of a read's time,
        # unless it has seen a large block freed: then it keeps some of its size.
        bytearray(WORTH_KEEPING)

    def has_room(self) -> bool:
        """Whether to read further ahead than is asked for: a store's answers take long."""
        if self._pool.waiting() >= len(self._pool):
            return False
        return self._held + len(self._pool) * self._guess < self._memory

    def begin(self, step: int, places: Places) -> Callable[[], Samples]:
        """Set the reads of a step going; what is returned waits for them."""
        pieces = []
        for key in self._keys(places).tolist():
            piece = self._pieces.get(key)
            if piece is None:
                chunk, part = divmod(key, self._parts)
                future = self._pool.submit(self._fetch, chunk, part * self._size, (part + 1) * self._size)
                piece = self._pieces[key] = _Held(key, future, self._guess)
                self._held += self._guess
            piece.step = step
            pieces.append(piece)
        return lambda: self._finish(step, places, pieces)

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

    def forget(self) -> None:
        """Let go of what was read ahead, and of what is held in the cache."""
        self._pieces.clear()
        self._held = 0
        if self._cached is not None:
            self._cached.close()

    def _keys(self, places: Places) -> Ints:
        """The numbers of the pieces that hold the samples."""
        return places.chunk * self._parts + places.inside // self._size

    def _finish(self, step: int, places: Places, pieces: list[_Held]) -> Samples:
        contents = []
        for piece in pieces:
            content = piece.content
            if content is None:
                content = self._arrive(piece)
            contents.append(content)
            piece.left -= 1
            if piece.left == 0:
                self._drop(piece)
        if step // SWEEP != self._swept:  # what was left before its end: at an edge of a lane, say
            self._swept = step // SWEEP
            for piece in [piece for piece in self._pieces.values() if piece.step < step - self._stale]:
                self._drop(piece)
        return _samples(places, contents, (places.inside % self._size).tolist())

    def _arrive(self, piece: _Held) -> Piece:
        content = piece.content = piece.future.result()
        piece.left = len(content.images)
        if self._pieces.get(piece.key) is piece:
            self._held += content.bytes - piece.bytes
            piece.bytes = content.bytes
        return content

    def _drop(self, piece: _Held) -> None:
        if self._pieces.get(piece.key) is piece:
            self._held -= self._pieces.pop(piece.key).bytes

    def _fetch(self, number: int, first: int, stop: int) -> Piece:
        chunk = self._chunks.get(number)
        return read_piece(chunk, first, min(stop, len(chunk)), self._get, self._remote.get)


class _Held:
    """A piece that is there or on its way."""

    __slots__ = ("bytes", "content", "future", "key", "left", "step")

    def __init__(self, key: int, future: Future[Piece], guess: int) -> None:
        self.key, self.future, self.bytes = key, future, guess
        self.content: Piece | None = None
        self.left = 0  # samples that were not taken yet
        self.step = 0  # the last that takes of it, as far as is known


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
