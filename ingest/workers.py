"""Decoding in processes that can be killed: a crash, a hang or a memory bomb costs the one input that caused it.

A worker is a fresh Python (no fork of a process that has threads) at the other end of a pipe. One thread here
serves one worker: it sends an input, waits for the answer as long as allowed, and starts another worker where one
died. Workers die with this process, however it ends.
"""

from __future__ import annotations

import asyncio
import os
import pickle
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import Future
from multiprocessing import Pipe
from types import TracebackType
from typing import Any, Self

from ingest import image, media, tracks
from ingest.image import BadImage, ImageSettings, Stored
from ingest.media import Clips, MediaSettings
from ingest.reasons import Reason
from ingest.tracks import Tracks, TrackSettings
from seer_pipe.errors import UserError

Settings = ImageSettings | MediaSettings | TrackSettings
Made = Stored | Clips | Tracks  # what an input becomes: a sample, or several
Processor = Callable[[bytes, Any], Made]  # importable by name

WAITING = 2  # inputs that may wait for each worker, so that it never waits for one
PIXEL_MEMORY = 32  # bytes of memory for each pixel, while an image is decoded, converted and encoded
TRACKING_TIMEOUT = 600.0  # seconds for a clip, which may be of minutes
START_TIMEOUT = 120.0  # seconds for a worker's imports, on a slow network file system, say


class DecoderPool:
    """A ``processor`` for many inputs at once, in ``workers`` processes (as many as there are cores).

    timeout: seconds for one input. memory_limit: bytes of data that a worker may hold (enforced on Linux); by
    default enough for any image of ``max_pixels``. ``submit`` works from any thread and blocks while every worker
    has inputs waiting; in an event loop, ``await pool.process(data)``.
    """

    def __init__(
        self,
        settings: Settings,
        workers: int | None = None,
        timeout: float = 60.0,
        memory_limit: int | None = None,
        processor: Processor = image.process,
    ) -> None:
        workers = len(os.sched_getaffinity(0)) if workers is None else workers
        if workers < 1:
            raise UserError(f"workers = {workers}: at least 1")
        if timeout <= 0:
            raise UserError(f"timeout = {timeout}: seconds, more than 0")
        memory_limit = max(2 << 30, settings.max_pixels * PIXEL_MEMORY) if memory_limit is None else memory_limit
        if memory_limit < 256 << 20:
            raise UserError(f"memory_limit = {memory_limit}: bytes, at least 256 MiB")
        self._timeout = timeout
        self._task = pickle.dumps((processor, settings, memory_limit))
        self._jobs: queue.SimpleQueue[tuple[bytes, Future[Made]] | None] = queue.SimpleQueue()
        capacity = workers * (1 + WAITING)
        self._slots = threading.Semaphore(capacity)
        self._turns = asyncio.Semaphore(capacity)  # so that ``submit`` does not block an event loop
        self._closed = False
        self._threads = [threading.Thread(target=self._serve, daemon=True) for _ in range(workers)]
        for thread in self._threads:
            thread.start()

    def submit(self, data: bytes) -> Future[Made]:
        """The image or the clips to be; its ``result()`` may raise BadImage."""
        self._slots.acquire()
        if self._closed:
            raise RuntimeError("this pool is closed")
        future: Future[Made] = Future()
        future.add_done_callback(lambda _: self._slots.release())
        self._jobs.put((data, future))
        return future

    async def process(self, data: bytes) -> Made:
        """``submit`` and its result, awaited."""
        async with self._turns:
            return await asyncio.wrap_future(self.submit(data))

    def close(self, cancel: bool = False) -> None:
        """Finish what was submitted, or ``cancel`` what has not begun, then end the workers."""
        self._closed = True
        while cancel and not self._jobs.empty():
            if (job := self._jobs.get()) is not None:
                job[1].cancel()
        for _ in self._threads:
            self._jobs.put(None)
        for thread in self._threads:
            thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close(cancel=error is not None)

    def _serve(self) -> None:
        worker: _Worker | None = None
        while (job := self._jobs.get()) is not None:
            data, future = job
            if not future.set_running_or_notify_cancel():
                continue
            try:
                worker = worker or _Worker(self._task)
                stored = worker.ask(data, self._timeout)
            except BaseException as error:
                if worker is not None and worker.dead:
                    worker = None
                future.set_exception(error)
            else:
                future.set_result(stored)
        if worker is not None:
            worker.stop()


def pool_for(settings: Settings, workers: int | None = None) -> DecoderPool:
    """What makes of inputs that which ``settings`` are for. UserError where what it needs is not installed."""
    if isinstance(settings, ImageSettings):
        return DecoderPool(settings, workers)
    if isinstance(settings, TrackSettings):
        tracks.demand_cv2()
        return DecoderPool(settings, workers, TRACKING_TIMEOUT, processor=tracks.process)
    media.demand_av()
    return DecoderPool(settings, workers, settings.decode_timeout, processor=media.process)


class _Worker:
    """One process and our end of its pipe."""

    def __init__(self, task: bytes) -> None:
        self._pipe, theirs = Pipe()
        with theirs:
            # -P and our own path: the same modules as here, whatever lies in the current folder
            arguments = ["-P", "-m", "ingest.worker_main", str(theirs.fileno()), str(os.getpid())]
            one_thread = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                env=os.environ | one_thread | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
                stdin=subprocess.DEVNULL,
                pass_fds=[theirs.fileno()],
                start_new_session=True,  # Ctrl-C is for this process, which ends its workers
            )
        self._pipe.send_bytes(task)
        try:
            ready = self._pipe.poll(START_TIMEOUT)
            if ready:
                self._pipe.recv()
        except (EOFError, OSError):
            ready = False
        if not ready:
            self.stop(grace=5)
            raise ChildProcessError(f"a decoding worker did not start ({self._ending()})")

    @property
    def dead(self) -> bool:
        return self._process.returncode is not None

    def ask(self, data: bytes, timeout: float) -> Made:
        try:
            self._pipe.send_bytes(data)
            if not self._pipe.poll(timeout):
                self.stop()
                raise BadImage(Reason.DECODER_TIMEOUT, f"{timeout:g} s")
            answer = self._pipe.recv()
        except (EOFError, ConnectionError):
            self.stop(grace=5)  # it is dying already; how, is worth knowing
            raise BadImage(Reason.DECODER_CRASH, self._ending()) from None
        if isinstance(answer, BadImage):
            raise answer
        return answer

    def stop(self, grace: float = 0) -> None:
        """End the process, at once or after ``grace`` seconds; it holds nothing worth keeping."""
        self._pipe.close()
        try:
            self._process.wait(grace)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _ending(self) -> str:
        code = self._process.returncode
        return signal.Signals(-code).name if code < 0 else f"exit code {code}"
