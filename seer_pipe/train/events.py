"""RUN/events.jsonl: what happened to a run, a line an event, in the order of time.

``{"time": "2026-01-31T12:00:00.000+00:00", "event": "checkpoint", "step": 1000, …}``; more keys by event. Unlike the
metrics it is never cut back: after a resume it still lists steps that were lost.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

Event = Literal["start", "resume", "change", "checkpoint", "skip", "rollback", "stop", "error", "done", "warning"]
OnEvent = Callable[[Mapping[str, Any]], None]


class Events:
    """Appends to the events of a run; every line is out at once, and given to ``on_event``. For one process at once."""

    def __init__(self, run: Path, on_event: OnEvent | None = None) -> None:
        self._path, self._on_event = run / "events.jsonl", on_event
        torn = self._path.exists() and not self._path.read_bytes().endswith(b"\n")
        self._before = "\n" if torn else ""  # a kill cut the last line short; the next must not be glued to it

    def write(self, event: Event, step: int, **details: Any) -> None:
        """``step``: finished steps when it happened; ``details``: JSON values."""
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        row = {"time": now, "event": event, "step": step, **details}
        with self._path.open("a") as file:
            file.write(self._before + json.dumps(row) + "\n")
        self._before = ""
        if self._on_event is not None:
            self._on_event(row)


def read_events(run: Path) -> list[dict[str, Any]]:
    """The events of a run, oldest first."""
    return read_rows(run / "events.jsonl")


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows of a file of JSON lines; lines that a kill cut short are skipped."""
    rows = []
    for line in path.read_text().splitlines() if path.exists() else []:
        with suppress(json.JSONDecodeError):
            rows.append(json.loads(line))
    return rows
