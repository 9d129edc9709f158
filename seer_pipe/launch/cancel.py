"""Stopping a launched run for good."""

from __future__ import annotations

import time
from pathlib import Path

from seer_pipe import slurm
from seer_pipe.errors import UserError
from seer_pipe.launch import keeper, record
from seer_pipe.launch.record import Record

GRACE = 120.0  # seconds that a cancelled run has for its checkpoint


def cancel(run: Path) -> str:
    """Stop the run for good, its checkpoint committed if it is training; what was done."""
    launched = record_of(run)
    local = launched.where == "local"
    if not active(run) and not (local and keeper.waits(run)):
        return "is not running"
    record.change(run, cancelled=True)  # which the keeper of a local run looks at
    if not local:
        waiting = slurm.queue([launched.job]).get(launched.job)
        if waiting is not None and waiting.state == "RUNNING":
            slurm.signal(launched.job, "USR2")
        else:
            slurm.cancel(launched.job)
    deadline = time.monotonic() + GRACE
    while active(run):
        if time.monotonic() > deadline:
            if not local:
                slurm.cancel(launched.job)
            return f"had {GRACE:.0f} s to stop and did not; its last checkpoint stays"
        time.sleep(0.5)
    return "cancelled"


def active(run: Path) -> bool:
    """Whether the run's job waits or runs."""
    launched = record.read(run)
    if launched is None:
        return False
    return bool(slurm.queue([launched.job])) if launched.where == "slurm" and launched.job else keeper.kept(run)


def record_of(run: Path) -> Record:
    """UserError where the run was not launched."""
    launched = record.read(run)
    if launched is None:
        raise UserError(f"{run}: was not launched (no launch.json); start it with seer-pipe launch")
    return launched
