"""A run: every unit of the plan that is not done yet, from inputs to committed shards."""

from __future__ import annotations

import asyncio
import errno
import fcntl
import heapq
import os
import re
import shutil
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from ingest.at_work import FOLDER, StoppedError, at_work
from ingest.budget import Budget, Lease
from ingest.files import read_parquet
from ingest.image import BadImage
from ingest.plan import DUPLICATE, INPUTS, TEMPORARY, UnitPlan
from ingest.progress import Meter
from ingest.reasons import LaterError, Reason, UnfetchedError
from ingest.sources import NUMBER, Row, Source
from ingest.unit import Made, MakeSink, Outcome, Rejection, ShardSink, Unit
from seer_pipe.errors import UserError
from seer_pipe.shards import MANIFEST, write_manifest
from seer_pipe.share import ALL, Share
from seer_pipe.store import Store, holding

OPEN_UNITS = 8  # one takes in inputs while the others wait for their slowest
LOOK = 0.25  # seconds between two looks at the inputs that were put back
#: Names of unfinished tars, of files not renamed yet, and of the folder in which a plan is made.
LEFTOVER = re.compile(rf"{re.escape(TEMPORARY)}([0-9a-f]{{32}}(\.tar|-.+)|plan-\w+)")
Process = Callable[[bytes], Awaitable[Made]]
T = TypeVar("T")


class Run:
    """Fetches, processes and writes the units ``todo``; all in one event loop, but for decoding."""

    def __init__(
        self, source: Source, plan: UnitPlan, process: Process, make_sink: MakeSink, meter: Meter, budget: Budget
    ) -> None:
        self._source, self._plan, self._process, self._make_sink = source, plan, process, make_sink
        self._meter, self._budget = meter, budget
        self._room = asyncio.Semaphore(OPEN_UNITS)
        self._units: set[Unit] = set()
        self._threads: set[asyncio.Future[Any]] = set()  # what they do, until it is done
        self._later: list[tuple[float, int, int, Unit]] = []  # inputs put back, a heap: when due, unit, place
        self._traces: dict[int, list[str]] = {}  # of unforeseen errors, by unit

    async def work(self, todo: Sequence[int]) -> None:
        try:
            async with self._source, asyncio.TaskGroup() as group:
                returning = group.create_task(self._feed_again(group))
                for number in todo:
                    await self._room.acquire()
                    await self._feed(await self._in_thread(self._begin, number), group)
                for _ in range(OPEN_UNITS):  # until all are committed
                    await self._room.acquire()
                returning.cancel()
        except BaseExceptionGroup as several:
            raise several.exceptions[0] from None
        finally:
            await asyncio.gather(*self._threads, return_exceptions=True)
            for unit in self._units:
                unit.discard()

    async def _in_thread(self, work: Callable[..., T], *arguments: object) -> T:
        """A thread comes to its end even where the run is stopped meanwhile: so it is waited for."""
        done = asyncio.ensure_future(asyncio.to_thread(work, *arguments))
        self._threads.add(done)
        done.add_done_callback(self._threads.discard)
        return await asyncio.shield(done)

    def _begin(self, number: int) -> Unit:
        unit = Unit(self._plan, self._source, number, self._make_sink)
        self._units.add(unit)
        return unit

    async def _feed(self, unit: Unit, group: asyncio.TaskGroup) -> None:
        for place in self._source.fetch_order(unit.rows):
            row = unit.rows[place]
            if row[DUPLICATE]:
                await self._settle(unit, place, Rejection(Reason.DUPLICATE_URL))
            else:
                lease = await self._budget.admit()
                group.create_task(self._one(unit, place, row, lease))

    async def _feed_again(self, group: asyncio.TaskGroup) -> None:
        """Start again with the inputs that were put back, each when it is due."""
        loop = asyncio.get_running_loop()
        while True:
            while self._later and self._later[0][0] <= loop.time():
                *_, place, unit = heapq.heappop(self._later)
                lease = await self._budget.admit()
                group.create_task(self._one(unit, place, unit.rows[place], lease))
            await asyncio.sleep(LOOK)

    async def _one(self, unit: Unit, place: int, row: Row, lease: Lease) -> None:
        outcome: Outcome
        try:
            data = await self._source.fetch(row, lease)
            self._budget.learn(len(data))
            outcome = await self._process(data)
        except LaterError as error:
            lease.release()
            due = asyncio.get_running_loop().time() + error.seconds
            heapq.heappush(self._later, (due, unit.number, place, unit))
            return
        except (UnfetchedError, BadImage) as error:
            outcome = Rejection(error.reason, error.detail)
        except (UserError, OSError):  # of the run, not of the input: no space, no workers, a store that is away
            raise
        except Exception as error:
            outcome = self._unforeseen(unit, row, error)
        await self._settle(unit, place, outcome, lease)

    def _unforeseen(self, unit: Unit, row: Row, error: Exception) -> Rejection:
        """An error that no one thought of costs the one input, and leaves its traceback."""
        shown, what = self._source.shown(row), f"{type(error).__name__}: {error}"
        trace = "".join(traceback.format_exception(error))
        self._traces.setdefault(unit.number, []).append(f"{shown}\n{trace}\n")
        print(f"internal error at {shown}: {what}; continuing", file=sys.stderr, flush=True)
        return Rejection(Reason.INTERNAL, what)

    def _commit(self, unit: Unit) -> None:
        if traces := self._traces.pop(unit.number, None):
            text = "".join(traces).encode("utf-8", "backslashreplace")
            self._plan.store.put(f"errors/{unit.number:05d}.txt", text)
        unit.commit()

    async def _settle(self, unit: Unit, place: int, outcome: Outcome, lease: Lease | None = None) -> None:
        for written in unit.put(place, outcome, lease, room=self._budget.limit // 2 // OPEN_UNITS):
            if isinstance(written, Rejection):
                self._meter.add_rejected(written.reason)
            else:
                self._meter.add_stored(written.size)
        if unit.complete:
            await self._in_thread(self._commit, unit)
            self._meter.add_committed(len(unit.rows))
            self._units.discard(unit)
            self._room.release()


@dataclass(frozen=True)
class Summary:
    """What is in a shard set and what was rejected."""

    url: str
    shards: int
    inputs: int
    stored: int  # of the inputs
    bytes: int
    rejected: Mapping[str, int]  # by reason, the most frequent first
    media: str  # image, video, audio or pair
    samples: int  # as many as are stored, or the clips that were cut of these, or the tracks that were found in them


def ingest(
    source: Source,
    plan: UnitPlan,
    todo: Sequence[int],
    process: Process,
    make_sink: MakeSink = ShardSink,
    *,
    share: Share = ALL,
    earlier: int = 0,
    memory: int,
    as_json: bool,
) -> None:
    """Do the units ``todo`` of ``plan``, what is left of ``share``, with at most about ``memory`` bytes under way.

    ``earlier``: inputs of the share that are done already. Stops cleanly at the first SIGINT or SIGTERM, with
    StoppedError, and at once at the second.
    """
    with (
        saying_what_stays(plan.store),
        Meter(earlier + sum(map(plan.size, todo)), earlier, as_json) as meter,
        at_work(plan.store, share, meter.figures),
    ):
        asyncio.run(stoppable(lambda: Run(source, plan, process, make_sink, meter, Budget(memory)).work(todo)))


async def stoppable(work: Callable[[], Awaitable[None]]) -> None:
    """Do ``work``; the first SIGINT or SIGTERM cancels it, which is StoppedError, the second ends the process."""
    loop, task = asyncio.get_running_loop(), asyncio.current_task()
    stopped: list[int] = []

    def stop(number: int) -> None:
        stopped.append(number)
        for other in (signal.SIGINT, signal.SIGTERM):
            loop.remove_signal_handler(other)
            signal.signal(other, end)  # not the loop's, which may be closed by then
        print("stopping: what is under way is finished; again ends it at once", file=sys.stderr, flush=True)
        assert task is not None
        task.cancel()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop, number)
    try:
        await work()
    except asyncio.CancelledError:
        if not stopped:
            raise
        raise StoppedError(stopped[0]) from None


def end(number: int, _: object) -> None:
    if sys.stderr.isatty():
        os.write(2, b"\x1b[?25h\n")  # the cursor, which a progress bar hides
    os._exit(128 + number)


def pending(plan: UnitPlan) -> list[int]:
    """The units whose shard is not committed yet, in order."""
    there = {entry.path for entry in plan.store.list()}
    return [unit for unit in range(plan.units) if plan.sidecar(unit) not in there]


def finish(plan: UnitPlan) -> Summary:
    """Write the manifest, unless it is there, and say what came of the inputs."""
    units = range(plan.units)
    for entry in list(plan.store.list(FOLDER)):
        plan.store.delete(entry.path)  # of shares that were killed at the very end
    if plan.store.size(MANIFEST) is None:
        with saying_what_stays(plan.store):
            sidecars = [plan.sidecar(unit) for unit in units] if plan.in_place else None
            write_manifest(plan.store, [plan.shard(unit) for unit in units], sidecars, plan.media)
    manifest = read_parquet(plan.store.get(MANIFEST), ["samples", "bytes"])
    rejected: Counter[str] = Counter()

    def reasons(unit: int) -> list[str]:
        found: list[str] = read_parquet(plan.store.get(plan.rejected(unit)), ["reason"])["reason"].to_pylist()
        return found

    def cut(unit: int) -> int:
        """Inputs that became several samples, of each of which one is the first."""
        name = NUMBER[plan.media]
        numbers = read_parquet(plan.store.get(plan.sidecar(unit)), [name])[name].to_numpy()
        return int((numbers == 0).sum())

    samples = sum(manifest["samples"].to_pylist())
    with ThreadPoolExecutor(16) as pool:
        for found in pool.map(reasons, units):
            rejected.update(found)
        stored = samples if plan.media == "image" else sum(pool.map(cut, units))
    if stored + rejected.total() != plan.inputs:
        raise UserError(
            f"{plan.store.url}: {stored} stored and {rejected.total()} rejected, but {plan.inputs} inputs: files of "
            "another run are among its sidecars or in rejected/; make the set again with another --out"
        )
    return Summary(
        url=plan.store.url,
        shards=plan.units,
        inputs=plan.inputs,
        stored=stored,
        bytes=sum(manifest["bytes"].to_pylist()),
        rejected=dict(rejected.most_common()),
        media=plan.media,
        samples=samples,
    )


@contextmanager
def sole(store: Store, share: Share = ALL) -> Iterator[None]:
    """Be the only command at work in ``store``, where it is a folder, but for other shares; and clear away what
    killed ones left."""
    local = store.local_path(INPUTS)
    if local is None:
        yield
        return
    root = local.parent
    try:
        root.mkdir(parents=True, exist_ok=True)
        folder = os.open(root, os.O_RDONLY)
    except OSError as error:
        raise UserError(f"{root}: cannot write there: {error.strerror}") from None
    try:
        try:
            fcntl.flock(folder, (fcntl.LOCK_EX if share == ALL else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(f"{root}: another seer-ingest is at work there") from None
        except OSError:
            pass  # a file system without locks
        if not os.access(root, os.W_OK | os.X_OK):
            raise UserError(f"{root}: cannot write there: no permission")
        clear(root)
        yield
        clear(root)
    finally:
        os.close(folder)


def clear(root: Path) -> None:
    """Remove the temporary files and folders in ``root`` that no process holds."""
    for left in (*root.glob(f"{TEMPORARY}*"), *root.glob(f"*/{TEMPORARY}*")):
        if LEFTOVER.fullmatch(left.name):
            with suppress(FileNotFoundError), holding(left) as held:  # finished since
                if held:
                    shutil.rmtree(left) if left.is_dir() else left.unlink()


@contextmanager
def saying_what_stays(store: Store) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            raise UserError(
                f"{store.url}: no space left; what is committed stays: make room and run the same command again"
            ) from None
        raise OSError(f"{error}; what is committed stays, and the same command resumes") from error
