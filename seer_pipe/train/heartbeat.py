"""RUN/heartbeat.json: how a run is doing right now, for whoever watches it from outside.

``{"time", "state", "step", "steps", "images_per_s", "loss", "eta_s", "world", "host", "pid", "restarts"}``,
whole at any moment; ``time`` in Unix seconds. It says when it was written, so a reader sees that a run has gone silent.
"""

from __future__ import annotations

import json
import os
import socket
import time
from pathlib import Path
from typing import Any, Literal

from seer_pipe.store import FolderStore

State = Literal["starting", "running", "stopping", "done", "failed"]
EVERY = 5.0  # seconds at least between two of the same state
NAME = "heartbeat.json"


class Heartbeat:
    """Written by the first rank; ``restarts`` counts how often the run was restarted."""

    def __init__(self, run: Path, step: int, steps: int, batch: int, world: int) -> None:
        before = read_heartbeat(run)
        self._store, self._batch, self._restarts = FolderStore(run), batch, before["restarts"] + 1 if before else 0
        self._steps, self._world, self._state, self._loss = steps, world, "", None if before is None else before["loss"]
        self._written, self._since, self._first = 0.0, time.monotonic(), step
        self._rate: float | None = None  # steps per second
        self.beat("starting", step)

    def beat(self, state: State, step: int, loss: float | None = None) -> None:
        """``step``: finished steps."""
        self._loss = self._loss if loss is None else loss
        now = time.monotonic()
        if state == self._state and now - self._written < EVERY:
            return
        if step > self._first:
            self._rate = (step - self._first) / (now - self._since)
        self._since, self._first, self._written, self._state = now, step, now, state
        self._store.put(NAME, json.dumps({
            "time": time.time(), "state": state, "step": step, "steps": self._steps,
            "images_per_s": None if self._rate is None else self._rate * self._batch, "loss": self._loss,
            "eta_s": None if self._rate is None else (self._steps - step) / self._rate, "world": self._world,
            "host": socket.gethostname(), "pid": os.getpid(), "restarts": self._restarts,
        }).encode())  # fmt: skip


def read_heartbeat(run: Path) -> dict[str, Any] | None:
    """The last heartbeat of a run; None before its first."""
    try:
        beat: dict[str, Any] = json.loads((run / NAME).read_text())
    except (FileNotFoundError, json.JSONDecodeError):
        return None
    return beat
