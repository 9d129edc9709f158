"""Samples of shards in folders, each read by itself: what is read ahead lies in the page cache, and nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from itertools import accumulate

import google_crc32c
import numpy as np

from seer_pipe.data.chunks import Chunk, Chunks, Samples
from seer_pipe.data.fetch import Folder
from seer_pipe.data.order import Places
from seer_pipe.data.sources import Shards
from seer_pipe.data.threads import Pool


class Direct:
    """Reads a step at once, if its indexes are known and the page cache holds it; or has a thread of ``pool`` do it.

    That thread asks the system for the whole of every chunk that it finds missing, so that what follows in a lane is
    one long read of the disk.
    """

    def __init__(self, shards: Shards, chunks: Chunks, pool: Pool) -> None:
        self._chunks, self._pool, self._folder = chunks, pool, Folder(shards)
        self._latest: dict[int, Chunk] = {}  # of the step read last: most of them serve the next one as well

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
        for number in self._chunks.missing(places.chunk):
            self._pool.submit(self._chunks.get, number)
        return self._pool.submit(self._read, places)

    def _read(self, places: Places, *, wait: bool = True) -> Samples:
        """The samples at ``places``; a ``BlockingIOError`` rather than to ``wait`` for the disk."""
        numbers = places.chunk.tolist()
        latest = self._latest
        chunks = {n: latest.get(n) or self._chunks.get(n, wait=wait) for n in set(numbers)}
        self._latest = chunks
        rows = [chunks[number].rows[i] for number, i in zip(numbers, places.inside.tolist(), strict=True)]
        shards, offsets, lengths, sums, heights, widths = zip(*rows, strict=True)
        ends = list(accumulate(lengths))
        memory = self._folder.memory(ends[-1])
        images = [memory[end - length : end] for end, length in zip(ends, lengths, strict=True)]
        late = self._folder.at_once(shards, offsets, images)
        if late and not wait:
            raise BlockingIOError
        for row in late:
            self._folder.expect(shards[row], chunks[numbers[row]].spans)
        reasons = {}
        for row in late:
            try:
                self._folder.read(shards[row], offsets[row], images[row])
            except OSError as error:
                reasons[row] = str(error)
        found = tuple(map(google_crc32c.value, images))
        if found != sums:
            for row in np.flatnonzero(np.not_equal(found, sums)).tolist():
                reasons.setdefault(row, f"sample at byte {offsets[row]}: checksum mismatch")
        for chunk in chunks.values():
            if chunk.lost:
                reasons |= {row: chunk.lost[s] for row, s in enumerate(shards) if s in chunk.lost}
        samples = Samples(places, list(images), np.array(heights), np.array(widths), reasons)
        for row in reasons:
            samples.data[row], samples.height[row], samples.width[row] = None, 0, 0
        return samples
