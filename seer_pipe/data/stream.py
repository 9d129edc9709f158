"""The bytes of the images, in the order of a plan.

From a folder every image is read on its own (``direct.py``): what is read ahead lies in the page cache. From an object
store, whole chunks or pieces of them are read and held (``pieces.py``). Reads are begun before they are needed, and
every payload is checked against its CRC32C. What cannot be read is not raised but handed on, for the loader to replace.

What the page cache holds is read at once, by the caller's own thread. Threads read the rest, in the trainer's process:
reading lets go of Python's lock.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import islice

import numpy as np

from seer_pipe.data.cache import Cache
from seer_pipe.data.chunks import Samples
from seer_pipe.data.direct import Direct
from seer_pipe.data.order import Ints, Places
from seer_pipe.data.pieces import REQUESTS, Pieces
from seer_pipe.data.sources import Order, Shards
from seer_pipe.data.threads import Pool
from seer_pipe.errors import UserError

FURTHEST = 256  # steps that reading may be ahead
#: One place asks for so many substitutes before the run stops: the set must be broken throughout.
ATTEMPTS = 16


@dataclass(frozen=True)
class Replaced:
    """An image that could not be used at ``slot`` of the global batch of ``step``."""

    step: int
    slot: int
    shard: str
    index: int  # number of the sample in its shard
    reason: str


def too_many(replaced: int, images: int, limit: float) -> bool:
    """Whether more than the share ``limit`` of the images so far had to be replaced; a few at the start are no rate."""
    return replaced > limit * max(images, 1000)


class Stream:
    """Reads the samples at ``slots`` of one step after another, with ``threads``.

    ``batches(first, last)`` yields ``Samples``, one per slot, for every step of [first, last), or for one in ``every``.
    It reads at least ``ahead`` of these in advance, and from a store further while what it holds is less than
    ``memory`` bytes; only what the steps in ``ahead`` and one piece of every track need may go beyond.
    ``read(places)`` reads any samples at once.
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
        every: int = 1,
    ) -> None:
        self._shards, self._plan, self._slots, self._ahead, self._every = shards, plan, slots, ahead, every
        lanes = len(np.unique(slots // (plan.batch // plan.lanes)))
        tracks = lanes * plan.window  # each is in a chunk of its own, or between two
        self._reader: Direct | Pieces
        if shards.is_local():
            self._pool = Pool(threads, "stream")
            self._reader = Direct(shards, plan, 2 * tracks, self._pool)
        else:
            self._pool = Pool(max(threads, REQUESTS), "stream")
            self._reader = Pieces(shards, plan, tracks, self._pool, memory, cache, every)

    def batches(self, first: int, last: int) -> Iterator[Samples]:
        self._reader.forget()
        located = self._located(first, last)
        coming: deque[Callable[[], Samples]] = deque()
        while True:
            depth = self._ahead + 1
            if self._reader.has_room():
                depth = max(depth, min(len(coming) + 2, FURTHEST))
            for step, places in islice(located, max(0, depth - len(coming))):
                coming.append(self._reader.begin(step, places))
            if not coming:
                return
            yield coming.popleft()()

    def read(self, places: Places) -> Samples:
        """The samples at ``places``, those of one chunk together."""
        return self._reader.read(places)

    def replace(self, step: int, samples: Samples, bad: Mapping[int, str], attempts: Ints) -> list[Replaced]:
        """Put others, which the plan draws, in the place of those rows of ``samples`` that are ``bad``, for the reasons
        given. ``attempts``, [n], counts them by row. UserError where there were too many."""
        rows, replaced = np.array(sorted(bad)), []
        for row in rows.tolist():
            shard = self._shards.paths[int(samples.places.shard[row])]
            index = int(samples.places.index[row])
            replaced.append(Replaced(step, int(self._slots[row]), shard, index, bad[row]))
        if attempts.max() == ATTEMPTS:
            raise UserError(
                f"{ATTEMPTS} substitutes in a row cannot be used, the last for: "
                f"{replaced[-1].shard}: {replaced[-1].reason}; run seer-ingest verify on the set"
            )
        samples.put(rows, self.read(self._plan.substitute(step, self._slots[rows], attempts[rows])))
        attempts[rows] += 1
        return replaced

    def close(self) -> None:
        self._pool.close()
        self._reader.forget()

    def _located(self, first: int, last: int) -> Iterator[tuple[int, Places]]:
        """The steps to be read; many are computed at once, which costs little more than one."""
        n = len(self._slots)
        block = max(1, 8192 // n)
        for start in range(first, last, block * self._every):
            steps = np.arange(start, min(start + block * self._every, last), self._every)
            places = self._plan.locate(np.repeat(steps, n), np.tile(self._slots, len(steps)))
            for row, step in enumerate(steps.tolist()):
                yield step, places[row * n : (row + 1) * n]
