"""When a run is asked to stop before its end: by a signal, or by the end of its allocation coming near."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from types import FrameType, TracebackType

#: Signals that mean: commit a checkpoint and end. Slurm and submitit send SIGTERM, SIGUSR1 or SIGUSR2.
SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2)


def deadline() -> float | None:
    """When the allocation ends, in Unix seconds: SEER_PIPE_DEADLINE, or what Slurm says; None where nothing does."""
    for name in ("SEER_PIPE_DEADLINE", "SLURM_JOB_END_TIME"):
        try:
            return float(os.environ[name])
        except (KeyError, ValueError):
            continue
    return None


class StopRequest:
    """Within it, ``reason`` says why to stop, once there is one; Ctrl-C after that ends the process at once.

    ``before``: seconds before the allocation's end that count as a request.
    """

    def __init__(self, before: float) -> None:
        end = deadline()
        # at most half of a short allocation is given up: a run must get on
        self._deadline = None if end is None else end - min(before, max(0.0, end - time.time()) / 2)
        self._signal: str | None = None
        self._restore: list[Callable[[], object]] = []

    @property
    def reason(self) -> str | None:
        if self._signal is None and self._deadline is not None and time.time() >= self._deadline:
            return "the allocation ends soon"
        return self._signal

    def __enter__(self) -> StopRequest:
        for number in SIGNALS:
            before = signal.signal(number, self._note)
            self._restore.append(lambda number=number, before=before: signal.signal(number, before))  # type: ignore[misc]
        return self

    def _note(self, number: int, _frame: FrameType | None) -> None:
        if self._signal is not None and number == signal.SIGINT:  # Slurm sends several while a checkpoint is written
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        self._signal = signal.Signals(number).name

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for restore in self._restore:
            restore()
