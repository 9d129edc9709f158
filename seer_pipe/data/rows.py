"""Where the bytes of samples lie in their shards, and what they must be, kept as it comes into use."""

from __future__ import annotations

from threading import Lock

import numpy as np
import numpy.typing as npt

from seer_pipe.data.order import Ints, Places
from seer_pipe.data.sources import Shards
from seer_pipe.data.threads import Kept, at_once
from seer_pipe.shards import ShardIndex

INDEXED = 4_000_000  # samples whose index is kept: 24 bytes each
BLOCK = 128  # samples that are kept or forgotten together

#: What is known of a sample: bytes, bytes, CRC32C, pixels, pixels.
ROW = np.dtype([("offset", "i8"), ("length", "i4"), ("crc32c", "u4"), ("height", "i4"), ("width", "i4")])
Found = npt.NDArray[np.void]


class Indexes:
    """The indexes of the shards that were used last."""

    def __init__(self, shards: Shards) -> None:
        self._shards = shards
        counts = max(1, len(shards) // max(1, len(shards.counts)))
        self._kept: Kept[int, ShardIndex] = Kept(max(16, INDEXED // counts))

    def get(self, shard: int, *, wait: bool = True) -> ShardIndex:
        """Of shard number ``shard``; a ``BlockingIOError`` rather than to ``wait`` for it."""
        while True:
            try:
                return self._kept.get(shard, self._shards.index if wait else at_once)
            except BlockingIOError:  # with ``wait``, of another thread that did not want to, at the same moment
                if not wait:
                    raise


class Rows:
    """Looks up many samples at once, in a table of those blocks of shards that came into use last.

    ``in_use``: samples that are read from one neighbourhood each; twice as many blocks are kept at least. A set of
    up to ``INDEXED`` samples is soon there as a whole.
    """

    def __init__(self, shards: Shards, in_use: int) -> None:
        self._indexes = Indexes(shards)
        blocks = -(-shards.counts // BLOCK)
        self._first: Ints = np.cumsum(blocks) - blocks  # number of each shard's first block
        total = int(blocks.sum())
        room = min(total, max(2 * in_use, INDEXED // BLOCK))
        # Memory that the system gives where it is written to: numbers from 1, as such memory holds zeros.
        self._place = np.zeros(total, np.int32)  # of each block in the table; 0 for none
        self._owner = np.full(room + 1, -1, np.int64)  # the block at each place
        self._table = np.zeros((room + 1, BLOCK), ROW)
        self._next = 1
        self._lock = Lock()

    def find(self, places: Places, *, wait: bool) -> tuple[Found, dict[int, str]]:
        """What is known of the samples at ``places``, [n], and of which rows nothing is, zeros there, with the reason.

        A ``BlockingIOError`` rather than to ``wait`` for the disk.
        """
        number, inside = np.divmod(places.index, BLOCK)
        block = self._first[places.shard] + number
        with self._lock:
            place = self._place[block]
            found: Found = self._table[place, inside]
        lost: dict[int, str] = {}
        missing = np.flatnonzero(place == 0)
        for shard in np.unique(places.shard[missing]).tolist():
            rows = missing[places.shard[missing] == shard]
            try:
                index = self._indexes.get(shard, wait=wait)
            except BlockingIOError:
                raise
            except OSError as error:
                found[rows] = np.zeros((), ROW)
                lost |= dict.fromkeys(rows.tolist(), str(error))
                continue
            for field in ROW.names or ():
                found[field][rows] = getattr(index, field)[places.index[rows]]
            for own in np.unique(number[rows]).tolist():
                self._keep(int(self._first[shard]) + own, index, own * BLOCK)
        return found, lost

    def missing(self, places: Places) -> list[int]:
        """The shards whose indexes are needed for samples at ``places``."""
        block = self._first[places.shard] + places.index // BLOCK
        return np.unique(places.shard[self._place[block] == 0]).tolist()

    def bring(self, shard: int) -> None:
        """Have an index at hand."""
        self._indexes.get(shard)

    def _keep(self, block: int, index: ShardIndex, start: int) -> None:
        with self._lock:
            if self._place[block]:
                return
            place = self._next
            self._next = place % (len(self._owner) - 1) + 1
            if (old := int(self._owner[place])) >= 0:
                self._place[old] = 0
            row = self._table[place]
            for field in ROW.names or ():
                of = getattr(index, field)[start : start + BLOCK]
                row[field][: len(of)] = of
            self._place[block], self._owner[place] = place, block
