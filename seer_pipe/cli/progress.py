"""What is shown of a training while it runs: a bar in a terminal, JSON lines for a program, else plain lines."""

from __future__ import annotations

import errno
import functools
import json
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any, TextIO, cast

from rich.progress import BarColumn, Progress, TextColumn

from seer_pipe.train.events import OnEvent
from seer_pipe.train.trainer import Say
from seer_pipe.units import duration


@contextmanager
def watching(as_json: bool) -> Iterator[tuple[Say, OnEvent | None]]:
    """Where a run prints its lines, and gives its events. A reader of them that goes away does not end the run."""
    with redirect_stdout(Lasting.over(sys.stdout)) as stdout, redirect_stderr(Lasting.over(sys.stderr)) as stderr:
        if as_json:
            yield functools.partial(print, file=stderr), lambda event: print(json.dumps(event), flush=True)
        elif stdout.isatty():
            with Bar() as bar:
                yield bar.say, bar.on_event
        else:
            yield functools.partial(print, flush=True), None


class Lasting:
    """A text stream to which writing never fails: what cannot be written is lost, as with ``| head``, a terminal that
    was closed, or a log on a full disk."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    @classmethod
    def over(cls, stream: TextIO | None) -> TextIO:
        """``stream``: None where the process was started with it closed."""
        return cast(TextIO, cls(stream or Path(os.devnull).open("w")))

    def write(self, text: str) -> int:
        self._try(lambda: self._stream.write(text))
        return len(text)

    def flush(self) -> None:
        self._try(self._stream.flush)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            if error.errno in (errno.EPIPE, errno.EIO):  # from now on, so also what is buffered or printed elsewhere
                null = os.open(os.devnull, os.O_WRONLY)
                os.dup2(null, self._stream.fileno())
                os.close(null)


class Bar:
    """The last line of a terminal; other lines go by above it. Drawn from the first event on, so on the first rank."""

    def __init__(self) -> None:
        step = TextColumn("step {task.completed:.0f}/{task.total:.0f}")
        self._progress = Progress(step, BarColumn(bar_width=8), TextColumn("{task.description}"), refresh_per_second=2)
        self._task = self._progress.add_task("", total=0, visible=False)

    def __enter__(self) -> Bar:
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

    def say(self, line: str) -> None:
        self._progress.console.print(line, markup=False, highlight=False, soft_wrap=True)

    def on_event(self, event: Mapping[str, Any]) -> None:
        if event["event"] in ("start", "resume"):
            self._progress.start()
            self._progress.console.show_cursor(True)  # a kill would leave it hidden
        if event["event"] in ("start", "resume", "rollback", "step"):
            self._progress.update(self._task, completed=event["step"], total=event.get("steps"), visible=True)
        if event["event"] == "step":
            self._progress.update(self._task, description=figures(event))


def figures(step: Mapping[str, Any]) -> str:
    """Time to go, loss, rate and waiting of a logged step, short enough for a terminal of 80 columns."""
    left = duration((step["steps"] / step["step"] - 1) * step["images"] / step["images_per_s"])
    loss = f"loss {step['loss']:.3f}" if "loss" in step else "loss not finite"
    if "loss_above_chance" in step:
        loss += f" (chance {step['loss'] - step['loss_above_chance']:.3f})"
    return f"{left} left  {loss}  {step['images_per_s']:.1f} images/s  wait {step['data_wait']:.0%}"
