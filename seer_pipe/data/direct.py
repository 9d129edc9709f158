"""Samples of shards in folders, each read on its own: what is read ahead lies in the page cache, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from itertools import accumulate

import google_crc32c
import numpy as np

from seer_pipe.data.chunks import Samples
from seer_pipe.data.fetch import Folder
from seer_pipe.data.order import Places
from seer_pipe.data.rows import Rows
from seer_pipe.data.sources import Order, Shards
from seer_pipe.data.threads import Pool

EXPECTED = 1 << 20  # bytes: one long read of a disk, and little enough for the page cache to hold of every track


class Direct:
    """Reads a step at once, if its indexes are known and the page cache holds it; or has a thread of ``pool`` do it.

    Where that thread finds a sample missing, it asks the system for what follows in its chunk as well, so that the next
    samples of its track are one long read of the disk. ``in_use``: chunks that are read from at a time.
    """

    def __init__(self, shards: Shards, plan: Order, in_use: int, pool: Pool) -> None:
        self._rows, self._pool, self._folder = Rows(shards, in_use), pool, Folder(shards)
        self._chunk = plan.chunk

    def has_room(self) -> bool:
        """Whether to read further ahead than is asked for: no, the system does."""
        return False

    def begin(self, step: int, places: Places) -> Callable[[], Samples]:
        """Set the reads of a step going; what is returned waits for them."""
        try:
            samples = self._read(places, wait=False)
        except BlockingIOError:
            return self._submit(places).result
        return lambda: samples

    def read(self, places: Places) -> Samples:
        return self._submit(places).result()

    def forget(self) -> None:
        """Let go of what was read ahead: nothing is held here."""

    def _submit(self, places: Places) -> Future[Samples]:
        for shard in self._rows.missing(places):
            self._pool.submit(self._rows.bring, shard)
        return self._pool.submit(self._read, places)

    def _read(self, places: Places, *, wait: bool = True) -> Samples:
        """The samples at ``places``; a ``BlockingIOError`` rather than to ``wait`` for the disk."""
        found, reasons = self._rows.find(places, wait=wait)
        shards, offsets, lengths = places.shard.tolist(), found["offset"].tolist(), found["length"].tolist()
        ends = list(accumulate(lengths))
        memory = self._folder.memory(ends[-1])
        images = [memory[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        late = self._folder.at_once(shards, offsets, images)
        if late and not wait:
            raise BlockingIOError
        for row in late:
            if places.copy[row]:
                continue  # the next copies of its chunk lie elsewhere
            left = self._chunk - int(places.inside[row])
            self._folder.expect(shards[row], offsets[row], min(EXPECTED, left * lengths[row]))
        for row in late:
            try:
                self._folder.read(shards[row], offsets[row], images[row])
            except OSError as error:
                reasons.setdefault(row, str(error))
        sums = list(map(google_crc32c.value, images))
        if sums != (meant := found["crc32c"].tolist()):
            for row in np.flatnonzero(np.not_equal(sums, meant)).tolist():
                reasons.setdefault(row, f"sample at byte {offsets[row]}: checksum mismatch")
        samples = Samples(
            places, list(images), found["height"].astype(np.int64), found["width"].astype(np.int64), reasons
        )
        for row in reasons:
            samples.data[row], samples.height[row], samples.width[row] = None, 0, 0
        return samples
