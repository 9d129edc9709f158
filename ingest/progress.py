"""What is shown of a run: a bar in a terminal, JSON lines elsewhere."""

from __future__ import annotations

import json
import sys
import time
from collections import Counter
from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, Task, TextColumn
from rich.text import Text

from seer_pipe.units import duration

LEADING = 3  # reasons shown


class _Left(ProgressColumn):
    """Time to go, with its units."""

    def render(self, task: Task) -> Text:
        return Text("" if task.time_remaining is None else f"{duration(task.time_remaining)} left")


class Meter:
    """Counts outcomes and shows them on standard error, at most every ``EVERY`` seconds."""

    EVERY_LINE, EVERY_BAR = 10.0, 0.2

    def __init__(self, total: int, done: int, as_json: bool) -> None:
        self.total, self.earlier = total, done
        self.stored = self.bytes = self.committed = 0
        self.reasons: Counter[str] = Counter()
        self._started = self._shown = time.monotonic()
        self._bar: Progress | None = None
        if not as_json and sys.stderr.isatty():
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                _Left(),
                TextColumn("{task.fields[figures]}"),
                console=Console(stderr=True),
            )
            self._task = self._bar.add_task("ingest", total=total, completed=done, figures="")

    def __enter__(self) -> Self:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.show()
        if self._bar is not None:
            self._bar.stop()

    def add_stored(self, size: int) -> None:
        self.stored += 1
        self.bytes += size
        self._tick()

    def add_rejected(self, reason: str) -> None:
        self.reasons[reason] += 1
        self._tick()

    def add_committed(self, inputs: int) -> None:
        self.committed += inputs

    def _tick(self) -> None:
        every = self.EVERY_LINE if self._bar is None else self.EVERY_BAR
        if time.monotonic() - self._shown >= every:
            self.show()

    def figures(self) -> dict[str, float | int | dict[str, int]]:
        seconds = max(1e-3, time.monotonic() - self._started)
        seen = self.stored + self.reasons.total()
        return {
            "done": self.earlier + seen,
            "inputs": self.total,
            "under_way": seen - self.committed,
            "stored": self.stored,
            "inputs_per_s": round(seen / seconds, 1),
            "stored_per_s": round(self.stored / seconds, 1),
            "mb_per_s": round(self.bytes / seconds / 1e6, 2),
            "success": round(self.stored / max(1, seen), 4),
            "rejected": dict(self.reasons.most_common(LEADING)),
        }

    def show(self) -> None:
        self._shown = time.monotonic()
        now = self.figures()
        if self._bar is None:
            print(json.dumps(now), file=sys.stderr, flush=True)
            return
        leading = "  ".join(f"{reason} {count}" for reason, count in self.reasons.most_common(LEADING))
        figures = f"{now['stored_per_s']} stored/s  {now['mb_per_s']} MB/s  {now['success']:.0%} stored  {leading}"
        self._bar.update(self._task, completed=self.earlier + self.stored + self.reasons.total(), figures=figures)
