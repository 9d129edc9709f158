"""When a run is asked to stop before its end: by a signal, or by the end of its allocation coming near."""

from __future__ import annotations

import math
import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import FrameType, TracebackType
from typing import ClassVar

from seer_pipe.errors import UserError

#: Signals that mean: commit a checkpoint and end. Slurm and submitit send SIGTERM, SIGUSR1 or SIGUSR2; a terminal that
#: is closed sends SIGHUP.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP)
#: Seconds in which the same signal again is the same request: a terminal and torchrun send Ctrl-C both.
ONE_REQUEST = 1.0


@dataclass(frozen=True)
class Deadline:
    """When the allocation ends: Unix seconds, and the variable that says so."""

    name: str
    time: float


def deadline() -> Deadline | None:
    """What SEER_PIPE_DEADLINE says, or else Slurm; None where neither does. UserError where ours is no number."""
    for name in ("SEER_PIPE_DEADLINE", "SLURM_JOB_END_TIME"):
        text = os.environ.get(name, "")
        with suppress(ValueError):
            if text and math.isfinite(end := float(text)):
                return Deadline(name, end)
        if text and name == "SEER_PIPE_DEADLINE":
            raise UserError(f"SEER_PIPE_DEADLINE={text}: must be the allocation's end in Unix seconds (date +%s)")
    return None


class StopRequest:
    """Within it, ``reason`` says why to stop, once there is one; the same signal again ends the process at once.

    One of another kind does not, but for Ctrl-C: Slurm asks by SIGUSR2, sends SIGTERM when the time is over, and then
    still leaves some. SIGHUP never does: one closed terminal sends it several times. A SIGHUP that was ignored before
    (nohup) stays ignored. ``before``: seconds before the allocation's end that count as a request.

    A deadline in the past is none, since it is not this run's: a terminal that was opened inside an old allocation
    still has its variables. ``warning`` then says so.
    """

    def __init__(self, before: float) -> None:
        end, now = deadline(), time.time()
        self.warning: str | None = None
        self._deadline: float | None = None
        if end is not None and end.time <= now:
            self.warning = (f"{end.name} is {now - end.time:,.0f} s in the past, so it is ignored: was this terminal "
                            "opened in an allocation that is over?")  # fmt: skip
        elif end is not None:
            # at most half of a short allocation is given up: a run must get on
            self._deadline = end.time - min(before, (end.time - now) / 2)
        self._signal: str | None = None
        self._restore: list[Callable[[], object]] = []

    @property
    def reason(self) -> str | None:
        if self._signal is None and self._deadline is not None and time.time() >= self._deadline:
            return "the allocation ends soon"
        return self._signal

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            if number == signal.SIGHUP and signal.getsignal(number) == signal.SIG_IGN:
                continue
            before = signal.signal(number, self._note)
            self._restore.append(lambda number=number, before=before: signal.signal(number, before))  # type: ignore[misc]
        reading, writing = os.pipe()
        os.set_blocking(writing, False)
        wakeup = signal.set_wakeup_fd(writing)
        self._restore += [lambda: signal.set_wakeup_fd(wakeup), lambda: os.close(writing)]
        threading.Thread(target=self._watch, args=(reading,), name="signals", daemon=True).start()
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._signal = self._signal or signal.Signals(number).name

    def _watch(self, pipe: int) -> None:
        """In a thread, for the main one may hang in a collective, where none of its handlers runs."""
        came: dict[int, float] = {}
        while number := int.from_bytes(os.read(pipe, 1)):
            if number not in SIGNALS or number == signal.SIGHUP:  # a library's own, of its child processes, say
                continue
            now = time.monotonic()
            before = min(came.values(), default=now) if number == signal.SIGINT else came.get(number, now)
            if now - before > ONE_REQUEST:
                name = signal.Signals(number).name
                with suppress(OSError):  # the terminal may be gone
                    print(f"{name} again: ended at once; the same command resumes from the last checkpoint",
                          file=sys.stderr, flush=True)  # fmt: skip
                os._exit(128 + number)
            came.setdefault(number, now)
        os.close(pipe)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for restore in self._restore:
            restore()


class StoppedError(Exception):
    """The run is to stop where it is, between two steps."""


@dataclass
class Wait:
    """Called while the next batch is not there: a run that was asked to stop must not wait for a store that is away.

    One process alone stops between two steps. Of several, others may be inside the next step and wait for this one:
    where no batch comes for ``PATIENCE`` seconds after the request, this one leaves, and the steps since the last
    checkpoint are lost.
    """

    PATIENCE: ClassVar[float] = 20.0
    stop: StopRequest
    alone: bool
    since: float | None = None

    def __call__(self) -> None:
        if self.stop.reason is None:
            return
        if self.alone:
            raise StoppedError
        self.since = self.since or time.monotonic()
        if time.monotonic() - self.since > self.PATIENCE:
            print(f"{self.stop.reason}, and no data for {self.PATIENCE:.0f} s: this rank ends, and with it the others; "
                  "the same command resumes from the last checkpoint", file=sys.stderr, flush=True)  # fmt: skip
            raise SystemExit(130)
