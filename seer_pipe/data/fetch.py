"""Where the stream's bytes come from: a folder, an object store that must be expected to falter, or a disk cache."""

from __future__ import annotations

import os
import resource
import time
from collections import deque
from collections.abc import Sequence
from concurrent.futures import FIRST_COMPLETED, Future, wait
from contextlib import suppress
from functools import lru_cache
from threading import Lock
from typing import Any

import numpy as np

from seer_pipe.data.cache import Cache, Cached
from seer_pipe.data.chunks import Encoded, Span
from seer_pipe.data.sources import Shards
from seer_pipe.data.threads import Kept, begin
from seer_pipe.errors import UserError

DESCRIPTORS = 16_384  # files that are open at a time


def descriptors() -> int:
    """How many files this process may have open, after asking for as many as the order's open chunks want.

    A process begins with 1,024 on most systems, for the sake of programs that use ``select``, and may ask for more.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft < (wanted := min(hard, DESCRIPTORS)):
        with suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))
            soft = wanted
    return max(128, soft)


class Blocks:
    """Memory that is used again once nobody looks into it: new memory costs a page fault for every 4 kB of it."""

    def __init__(self) -> None:
        self._size = 0
        self._free: list[Encoded] = []

    def take(self, length: int) -> Encoded:
        if length > self._size:
            self._size, self._free = length * 5 // 4, []  # the batches of a run are nearly of one size
        block = self._free.pop() if self._free else np.empty(self._size, np.uint8)
        return np.asarray(_Lent(block, self._free))[:length]


class _Lent:
    """What an array of it, and all that is cut from that, keeps alive; then the block goes back."""

    def __init__(self, block: Encoded, home: list[Encoded]) -> None:
        self.__array_interface__ = block.__array_interface__
        self._block, self._home = block, home

    def __del__(self) -> None:
        self._home.append(self._block)


class Folder:
    """Shards in folders. Files stay open while they are among the last used, so an image costs one ``preadv``."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self.memory = Blocks().take
        self._file = lru_cache(descriptors() // 2)(lambda shard: _File(shards.url(shard)))

    def at_once(self, shards: Sequence[int], offsets: Sequence[int], memory: Sequence[Any]) -> list[int]:
        """Fill each of ``memory`` from its shard and offset; which of them the page cache does not hold as a whole,
        or the file system does not say."""
        late = []
        for row, (shard, offset, into) in enumerate(zip(shards, offsets, memory, strict=True)):
            try:
                file = self._file(shard)  # held meanwhile, or another thread's use of the cache could close it
                if os.preadv(file.number, [into], offset, os.RWF_NOWAIT) != len(into):
                    late.append(row)
            except OSError:
                late.append(row)
        return late

    def expect(self, shard: int, offset: int, length: int) -> None:
        """Have the system read ``length`` bytes from ``offset`` of ``shard``, without waiting for them."""
        with suppress(OSError):  # the read will report it
            os.posix_fadvise(self._file(shard).number, offset, length, os.POSIX_FADV_WILLNEED)

    def read(self, shard: int, offset: int, into: Any) -> None:
        """Fill ``into``; an ``OSError`` where that cannot be."""
        file = self._file(shard)
        got = os.preadv(file.number, [into], offset)
        if got != len(into):
            raise OSError(f"{self._shards.url(shard)}: {got} bytes at {offset} instead of {len(into)}")


class _File:
    """An open file, closed once nobody holds it: a thread that reads from it does."""

    def __init__(self, path: str) -> None:
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class Remote:
    """Shards in an object store, which retries what may pass; what is slow is asked for a second time here.

    A shard that stays unreadable is left alone for ``FORGET`` seconds, so that it costs its retries once and not
    once a chunk. Where the store itself has fallen silent, that is no shard's fault: the run is to stop.
    """

    FORGET = 600.0
    PATIENT = 3.0  # seconds until a request counts as slow, while there is little to compare with
    TIMES = 3  # requests for the same bytes, at most
    HEDGES = 8  # second requests under way at a time: a store that is slow altogether must not get twice the load

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        self._dead: dict[int, tuple[float, str]] = {}
        self._took: deque[float] = deque(maxlen=64)  # seconds, of the latest requests
        self._lock = Lock()
        self._hedging = 0

    def get(self, span: Span, start: int, length: int) -> bytes:
        until, reason = self._dead.get(span.shard, (0.0, ""))
        if time.monotonic() < until:
            raise OSError(reason)
        try:
            return self._hedged(span.shard, start, length)
        except OSError as error:
            if not isinstance(error, FileNotFoundError | PermissionError):
                self._blame(span.shard, error)
            self._dead[span.shard] = (time.monotonic() + self.FORGET, str(error))
            raise

    def _blame(self, shard: int, error: OSError) -> None:
        try:
            self._shards.probe(shard)
        except OSError:
            raise UserError(
                f"the store does not answer ({error}): start the run again when it does; it resumes from its checkpoint"
            ) from None

    def _hedged(self, shard: int, start: int, length: int) -> bytes:
        under_way = {self._ask(shard, start, length)}
        asked = 1
        while True:
            patience = asked * self._slow() if asked < self.TIMES else None
            done, under_way = wait(under_way, timeout=patience, return_when=FIRST_COMPLETED)
            for future in done:
                if future.exception() is None:
                    return future.result()
            if not under_way:
                return done.pop().result()  # raises
            if not done and self._may_hedge():
                asked += 1
                second = self._ask(shard, start, length)
                second.add_done_callback(self._hedge_ended)
                under_way.add(second)

    def _ask(self, shard: int, start: int, length: int) -> Future[bytes]:
        return begin("request", self._timed, shard, start, length)

    def _timed(self, shard: int, start: int, length: int) -> bytes:
        began = time.monotonic()
        data = self._shards.get_range(shard, start, length)
        self._took.append(time.monotonic() - began)
        return data

    def _slow(self) -> float:
        """Seconds after which a request is slow: three times what nearly all of the latest took."""
        took = sorted(self._took)
        return max(0.5, 3 * took[len(took) * 19 // 20]) if len(took) >= 16 else self.PATIENT

    def _may_hedge(self) -> bool:
        with self._lock:
            allowed = self._hedging < self.HEDGES
            self._hedging += allowed
        return allowed

    def _hedge_ended(self, _: Future[bytes]) -> None:
        with self._lock:
            self._hedging -= 1


class ThroughCache:
    """A remote source whose spans are kept whole in a disk cache for as long as they are read from, and longer."""

    def __init__(self, shards: Shards, remote: Remote, cache: Cache, most: int) -> None:
        self._shards, self._remote, self._cache = shards, remote, cache
        self._spans: Kept[Span, Cached | None] = Kept(min(most, descriptors() // 2))

    def get(self, span: Span, start: int, length: int) -> bytes:
        if self._cache.usable and (cached := self._spans.get(span, self._bring)) is not None:
            data = cached.read(start - span.start, length)
            if len(data) == length:
                return data
        return self._remote.get(span, start, length)

    def close(self) -> None:
        """Let go of what is held in the cache."""
        self._spans.clear()

    def _bring(self, span: Span) -> Cached | None:
        name = f"{self._shards.url(span.shard)}\t{self._shards.sha256[span.shard]}\t{span.start}\t{span.length}"
        return self._cache.get(name, span.length, lambda: self._remote.get(span, span.start, span.length))
