"""Joins order, bytes, views and DALI into batches, ahead of the trainer and in a thread of its own.

A batch is a function of (shard set, plan, seed, step): which images, which crops, which pixels. An image that
cannot be read or decoded is replaced by one that the plan draws from its place, so that a retry, a resume or
another world size gives the same batch; what was replaced is recorded with its reason.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from seer_pipe.config import Frames, Sound
from seer_pipe.data.cache import Cache
from seer_pipe.data.chunks import Samples
from seer_pipe.data.dali import BadImages
from seer_pipe.data.layouts import labels, lay_out
from seer_pipe.data.order import Ints
from seer_pipe.data.seen import Maker
from seer_pipe.data.sources import Order, Shards
from seer_pipe.data.stream import Replaced, Stream
from seer_pipe.data.views import CropSpec

POLL = 0.2  # seconds
PATIENCE = 5.0  # seconds that closing waits for a request that hangs


@dataclass(frozen=True)
class Batch:
    """``crops``: a tensor [n, 3, size, size] for each crop, normalised; n images in the order of the slots. Of clips
    whose frames are joined it is [n, 3, frames, size, size]. Last, where sound is asked for, a spectrogram [n, 1,
    columns, bands] of each.

    ``labels``: what the geometry of the views knows of each, [crops, n] int64; None where crops are independent.
    ``samples``, ``epochs`` [n] int64: the id of each image in its set or mix of sets, which stays on the host, and how
    often it was seen before.
    """

    step: int
    crops: list[torch.Tensor]
    labels: torch.Tensor | None
    samples: torch.Tensor
    epochs: torch.Tensor
    replaced: list[Replaced]


class Loader:
    """The batches of one rank: the images at ``slots`` of every step, as ``crops``.

    ``sound``: what is heard of samples that are a picture or a clip with its sound. ``frames``: of samples that are
    clips, where several are seen. ``seed`` keys the views.
    ``device``: where DALI works and the tensors are, in ``layout`` and ``dtype``. ``ahead``: batches made in advance;
    memory grows with it, the content does not change. ``memory`` and ``cache``: of the ``Stream``.
    """

    def __init__(
        self,
        shards: Shards,
        plan: Order,
        slots: Ints,
        crops: Sequence[CropSpec],
        sound: Sound | None = None,
        frames: Frames | None = None,
        *,
        seed: int,
        device: str = "cpu",
        threads: int = 2,
        ahead: int = 2,
        memory: int = 1 << 30,
        cache: Cache | None = None,
        layout: torch.memory_format = torch.contiguous_format,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        self._plan, self._slots = plan, slots
        self._crops, self._ahead, self._device = crops, ahead, device
        self._stream = Stream(shards, plan, slots, threads=max(4, threads), ahead=ahead, memory=memory, cache=cache)
        self._maker = Maker(
            crops, sound, frames, seed=seed, device=device, threads=threads, max_batch=len(slots), layout=layout,
            dtype=dtype,
        )  # fmt: skip
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def batches(self, first: int, last: int, waiting: Callable[[], None] = lambda: None) -> Iterator[Batch]:
        """The batches of steps [first, last), in order. At most one such iteration at a time.

        ``waiting`` is called now and then while the next batch is not there; what it raises is raised here.
        """
        if self._thread is not None:
            self._thread.join()
        ready: queue.Queue[Batch | BaseException | None] = queue.Queue(self._ahead)
        self._stop.clear()
        self._thread = threading.Thread(target=self._produce, args=(first, last, ready), name="loader", daemon=True)
        self._thread.start()
        try:
            while True:
                try:
                    item = ready.get(timeout=POLL)
                except queue.Empty:
                    waiting()
                    continue
                if item is None:
                    return
                if isinstance(item, BaseException):
                    raise item
                yield item
        finally:
            self._stop.set()

    def close(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join(PATIENCE)
        self._stream.close()
        if self._thread is None or not self._thread.is_alive():  # else it may still use it, and ends with the process
            self._maker.close()

    def _produce(self, first: int, last: int, ready: queue.Queue[Batch | BaseException | None]) -> None:
        def hand_over(item: Batch | BaseException | None) -> None:
            while not self._stop.is_set():
                try:
                    return ready.put(item, timeout=0.1)
                except queue.Full:
                    continue

        try:
            for step, samples in zip(range(first, last), self._stream.batches(first, last), strict=True):
                if self._stop.is_set():
                    return
                hand_over(self._make(step, samples))
            hand_over(None)
        except BaseException as error:  # the trainer's thread is the one to raise it
            hand_over(error)

    def _make(self, step: int, samples: Samples) -> Batch:
        replaced: list[Replaced] = []
        attempts = np.zeros(len(samples), np.int64)
        while True:
            bad = samples.reasons
            if not bad:
                try:
                    epochs = self._plan.epoch_of(step, self._slots)
                    keys = samples.places.drawn_as(self._plan.samples)
                    seen = self._maker(samples.data, epochs, keys, samples.height, samples.width)
                    return Batch(
                        step,
                        [*lay_out(seen.crops, self._crops), *seen.sounds],
                        labels(seen.views, self._crops, self._device),
                        torch.from_numpy(samples.places.sample),
                        torch.from_numpy(epochs).to(self._device),
                        replaced,
                    )
                except BadImages as error:
                    bad = dict(zip(error.indices, error.reasons, strict=True))
            replaced += self._stream.replace(step, samples, bad, attempts)
