"""The samples of shard sets in their exact order, for any training loop: a PyTorch ``IterableDataset``.

Which sample stands where is what `seer_pipe.data.order` says, for any number of ranks and workers. A rank's share of a
step is a batch; the workers of a ``DataLoader`` take whole steps in turn, which is the order in which it asks them.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import torch.distributed as dist
from torch.utils.data import IterableDataset, get_worker_info

from seer_pipe.config import Data
from seer_pipe.data.order import slots_of
from seer_pipe.data.sources import Order, Shards, open_cache, open_data
from seer_pipe.data.stream import Stream, too_many
from seer_pipe.data.threads import Kept
from seer_pipe.distributed.place import find_place
from seer_pipe.errors import UserError
from seer_pipe.section import validate
from seer_pipe.shards import CAPTIONS, is_run, members_of

Sample = dict[str, Any]
BLOCK = 128  # samples whose rows of a sidecar are kept together
TABLES = 16  # sidecars that are kept whole
POSITION = ("offset", "length", "crc32c")  # columns of a sidecar that say where an image is


def stream(
    sources: str | os.PathLike[str] | Mapping[str, float],
    batch: int,
    *,
    seed: int = 0,
    epochs: float | None = 1,
    start: int = 0,
    **data: Any,
) -> SampleStream:
    """The samples of a shard set, or of several mixed by weight, in the order that a run of `seer-pipe train` has.

    Args:
        sources: a folder or ``s3://bucket/prefix``, or several with their weights.
        batch: images per step, over all ranks; ranks must divide it. The order depends on it.
        seed: of the order.
        epochs: times through the set, each in another order; None: without end.
        start: finished steps: the whole state, for any number of ranks and workers.
        data: settings of the section ``data`` of a recipe, such as ``memory_gb`` or ``cache``.

    A sample is what webdataset makes of a tar: ``__key__``, ``__url__``, ``jpg`` (bytes; of a clip ``mp4``, ``flac``),
    ``json`` (bytes: the columns of the sidecar) and, where it has a column of this or the name ``caption``, ``txt``. An
    image that cannot be read or is not what it was is replaced by another one, as in a training; more than
    ``max_bad_fraction`` are a UserError.

    Ranks are those of ``torch.distributed`` where it is initialised, else those of torchrun's variables. With a
    ``DataLoader`` of ``batch_size=batch // ranks`` its batches are the steps, for any number of workers.
    """
    many = (
        [{"path": path, "weight": weight} for path, weight in sources.items()] if isinstance(sources, Mapping) else []
    )
    tree = {"sources": many} if isinstance(sources, Mapping) else {"path": os.fspath(sources)}
    settings = validate(Data, tree | data, "seer_pipe.stream")
    if batch < 1 or start < 0 or (epochs is not None and epochs <= 0):
        raise UserError(f"seer_pipe.stream: batch {batch}, start {start}, epochs {epochs}: one is out of range")
    return SampleStream(settings, batch, seed, epochs, start)


@dataclass(frozen=True)
class State:
    """Where an iteration is: ``done`` samples of step ``step`` were given. Of one of several workers, its own."""

    step: int
    done: int = 0
    worker: int = 0
    workers: int = 1


class SampleStream(IterableDataset[Sample]):
    """What `stream` gives. ``state_dict`` and ``load_state_dict`` are those of the process, as torchdata's
    ``StatefulDataLoader`` wants them: a state of each of its workers, so the same number of them resumes."""

    def __init__(self, data: Data, batch: int, seed: int, epochs: float | None, start: int) -> None:
        super().__init__()
        self._data, self._batch, self._seed, self._start = data, batch, seed, start
        if dist.is_available() and dist.is_initialized():
            rank, world = dist.get_rank(), dist.get_world_size()
        else:
            place = find_place()
            rank, world = place.rank, place.size
        self.slots = slots_of(rank, world, batch)  # of every step, on this rank
        shards, order = self._open()
        self.steps_per_epoch = order.steps_per_epoch
        self.steps = sys.maxsize if epochs is None else max(1, round(epochs * order.steps_per_epoch))
        self._order = f"{shards.fingerprint[:16]}-{order.fingerprint[:16]}"
        self._state = State(start)
        self._loaded = False

    def _open(self) -> tuple[Shards, Order]:
        """In each process anew: a store's connections are no good behind a fork."""
        return open_data(self._data, self._batch, self._seed)

    def __len__(self) -> int:
        """Samples of this rank, from ``start``."""
        if self.steps == sys.maxsize:
            raise TypeError("a stream without end (epochs=None) has no length")
        return max(0, self.steps - self._start) * len(self.slots)

    def state_dict(self) -> dict[str, Any]:
        return asdict(self._state) | {"order": self._order}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """The next iteration continues there. UserError where the state is one of another order."""
        if state["order"] != self._order:
            raise UserError("this state is of another order: of another set, batch, seed, or list of excluded samples")
        self._state, self._loaded = State(*(state[name] for name in ("step", "done", "worker", "workers"))), True

    def __iter__(self) -> Iterator[Sample]:
        info = get_worker_info()
        worker, workers = (0, 1) if info is None else (info.id, info.num_workers)
        state = self._state if self._loaded else State(self._start)
        if state.workers == 1:
            state = State(state.step + worker, state.done if worker == 0 else 0, worker, workers)
        if (state.worker, state.workers) != (worker, workers):
            raise UserError(f"this state is that of worker {state.worker} of {state.workers}, and this is {worker} of "
                            f"{workers}: take as many, or start=STEP with any number")  # fmt: skip
        self._state, self._loaded = state, False
        return self._iterate(state)

    def _iterate(self, state: State) -> Iterator[Sample]:
        shards, order = self._open()
        data, share, workers = self._data, len(self.slots), state.workers
        reading = Stream(
            shards, order, self.slots, threads=max(4, data.threads), ahead=data.ahead,
            memory=int(data.memory_gb * 1e9) // workers, cache=open_cache(data), every=workers,
        )  # fmt: skip
        described = Described(shards, 2 * share * order.window)
        replaced = seen = 0
        try:
            steps = range(state.step, self.steps, workers)
            for step, samples in zip(steps, reading.batches(state.step, self.steps), strict=True):
                attempts = np.zeros(share, np.int64)
                while samples.reasons:
                    replaced += len(reading.replace(step, samples, samples.reasons, attempts))
                seen += share
                if too_many(replaced, seen, data.max_bad_fraction):
                    raise UserError(f"{replaced} of {seen} images could not be read and were replaced, more than "
                                    f"max_bad_fraction {data.max_bad_fraction}: run seer-ingest verify")  # fmt: skip
                first = state.done if step == state.step else 0
                for n in range(first, share):
                    ended = n + 1 == share  # noted before it is given, for whoever takes it asks then
                    self._state = State(step + workers if ended else step, 0 if ended else n + 1, state.worker, workers)
                    shard, index, image = int(samples.places.shard[n]), int(samples.places.index[n]), samples.data[n]
                    assert image is not None
                    yield sample(shards.url(shard), described.row(shard, index), image.tobytes())
        finally:
            reading.close()


def sample(url: str, row: Mapping[str, Any], image: bytes) -> Sample:
    """As webdataset has it: the members of a sample by their extensions, undecoded."""
    about = {name: value for name, value in row.items() if name not in POSITION}
    members = members_of(image) if is_run(image) else {"jpg": image}
    made = {"__key__": row["key"], "__url__": url, **members, "json": json.dumps(about, default=str).encode()}
    caption = next((row[name] for name in CAPTIONS if isinstance(row.get(name), str)), None)
    return made if caption is None else made | {"txt": caption.encode()}


class Described:
    """The rows of sidecars that are in use, ``most`` neighbourhoods of them."""

    def __init__(self, shards: Shards, most: int) -> None:
        self._shards = shards
        self._tables: Kept[int, pa.Table] = Kept(TABLES)
        self._blocks: Kept[tuple[int, int], pa.Table] = Kept(most)

    def row(self, shard: int, index: int) -> dict[str, Any]:
        block, inside = divmod(index, BLOCK)
        rows: list[dict[str, Any]] = self._blocks.get((shard, block), self._block).slice(inside, 1).to_pylist()
        return rows[0]

    def _block(self, place: tuple[int, int]) -> pa.Table:
        shard, block = place
        table = self._tables.get(shard, self._shards.sidecar)
        last = min((block + 1) * BLOCK, table.num_rows)
        return table.take(pa.array(range(block * BLOCK, last)))  # a copy, so that the table can go
