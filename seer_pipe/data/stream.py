"""The bytes of the images, in the order of a plan.

From a folder each image is one ``pread``, which the page cache serves well. From an object store each chunk is
one ranged read (one a shard that it spans), begun before its first image is needed and dropped after its last.
Every payload is checked against its CRC32C. What cannot be read is not raised but handed on, for the loader
to replace.
"""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from threading import Lock
from typing import NamedTuple

import google_crc32c

from seer_pipe.data.order import Ints, Places, Plan, Run
from seer_pipe.shards import ShardIndex, ShardSet


@dataclass(frozen=True)
class Sample:
    """One image as it stands in the store; ``data`` is None where it cannot be read, for ``reason``."""

    shard: int
    index: int
    sample: int  # number in the whole set
    height: int  # pixels
    width: int
    data: bytes | None
    reason: str = ""


class _Indices:
    """The sidecars' indices of the shards in use, a bounded number of them."""

    KEEP = 1024

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self._kept: OrderedDict[int, Future[ShardIndex]] = OrderedDict()
        self._lock = Lock()

    def __getitem__(self, shard: int) -> ShardIndex:
        with self._lock:
            mine = shard not in self._kept
            if mine:
                self._kept[shard] = Future()
                if len(self._kept) > self.KEEP:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(shard)
            future = self._kept[shard]
        if mine:
            try:
                future.set_result(self._shards.index(shard))
            except BaseException as error:
                with self._lock:
                    self._kept.pop(shard, None)  # another read may succeed
                future.set_exception(error)
        return future.result()


class Stream:
    """Reads the samples at ``slots`` of one step after another, ``ahead`` steps in advance, with ``threads``.

    ``batches(first, last)`` yields a list of samples, one a slot, for every step of [first, last).
    ``read(places)`` reads any samples at once.
    """

    def __init__(self, shards: ShardSet, plan: Plan, slots: Ints, *, threads: int = 8, ahead: int = 2) -> None:
        self._shards, self._plan, self._slots = shards, plan, slots
        self._threads, self._ahead = threads, ahead
        self._indices = _Indices(shards)
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="stream")
        self._is_folder = shards.is_local()
        self._chunks: OrderedDict[int, Future[list[_Read]]] = OrderedDict()
        share = plan.batch // plan.lanes
        lanes = len(set((slots // share).tolist()))
        self._keep_chunks = 2 * lanes * (plan.window if share > 1 else 1) + threads

    def batches(self, first: int, last: int) -> Iterator[list[Sample]]:
        coming: deque[list[Callable[[], list[Sample]]]] = deque()
        for step in range(first, last + self._ahead):
            if step < last:
                coming.append(self._begin(self._plan.locate(step, self._slots)))
            if step >= first + self._ahead:
                yield [sample for finish in coming.popleft() for sample in finish()]

    def read(self, places: Places) -> list[Sample]:
        return self._read_each(_rows(places))

    def close(self) -> None:
        self._pool.shutdown(wait=True, cancel_futures=True)

    def _begin(self, places: Places) -> list[Callable[[], list[Sample]]]:
        """Set the reads of one step going; what finishes them, in order."""
        rows = _rows(places)
        if self._is_folder:
            share = -(-len(rows) // self._threads)
            parts = [rows[i : i + share] for i in range(0, len(rows), share)]
            return [self._pool.submit(self._read_each, part).result for part in parts]
        finish: list[Callable[[], list[Sample]]] = []
        for chunk, row in zip(self._plan.chunk_of(places).tolist(), rows, strict=True):
            if chunk not in self._chunks:
                self._chunks[chunk] = self._pool.submit(self._fetch, chunk)
            self._chunks.move_to_end(chunk)
            finish.append(partial(self._cut, self._chunks[chunk], row))
        while len(self._chunks) > self._keep_chunks:  # a chunk that was left is not touched again
            self._chunks.popitem(last=False)
        return finish

    def _read_each(self, rows: Sequence[_Row]) -> list[Sample]:
        samples = []
        for row in rows:
            shard, at = row.shard, row.at
            try:
                index = self._indices[shard]
                data = self._shards.get_range(shard, int(index.offset[at]), int(index.length[at]))
            except OSError as error:
                samples.append(row.unreadable(error))
                continue
            samples.append(self._checked(row, index, data))
        return samples

    def _fetch(self, chunk: int) -> list[_Read]:
        reads = []
        for run in self._plan.runs(chunk):
            try:
                index = self._indices[run.shard]
                start = int(index.offset[run.start])
                length = int(index.offset[run.stop - 1] + index.length[run.stop - 1]) - start
                data = self._shards.get_range(run.shard, start, length)
                reads.append(_Read(run, start, data))
            except OSError as error:
                reads.append(_Read(run, 0, error))
        return reads

    def _cut(self, chunk: Future[list[_Read]], row: _Row) -> list[Sample]:
        """One sample out of the bytes of its chunk."""
        for read in chunk.result():
            if read.run.shard == row.shard and read.run.start <= row.at < read.run.stop:
                if isinstance(read.data, OSError):
                    return [row.unreadable(read.data)]
                index = self._indices[row.shard]
                start = int(index.offset[row.at]) - read.start
                data = read.data[start : start + int(index.length[row.at])]
                return [self._checked(row, index, data)]
        raise AssertionError(f"{row} is not in its chunk")

    def _checked(self, row: _Row, index: ShardIndex, data: bytes) -> Sample:
        if google_crc32c.value(data) != index.crc32c[row.at]:
            return row.unreadable(OSError(f"{self._shards.paths[row.shard]}: checksum mismatch"))
        return Sample(*row, int(index.height[row.at]), int(index.width[row.at]), data)


class _Row(NamedTuple):
    """One of ``Places``."""

    shard: int
    at: int  # number of the sample in its shard
    sample: int

    def unreadable(self, error: OSError) -> Sample:
        return Sample(*self, 0, 0, None, str(error))


class _Read(NamedTuple):
    run: Run
    start: int  # offset in the tar of the first byte
    data: bytes | OSError


def _rows(places: Places) -> list[_Row]:
    columns = (places.shard.tolist(), places.index.tolist(), places.sample.tolist())
    return [_Row(*row) for row in zip(*columns, strict=True)]
