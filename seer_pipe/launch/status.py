"""How runs are doing, from their own files and Slurm's queue, and what they printed."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from seer_pipe import slurm
from seer_pipe.errors import UserError
from seer_pipe.launch import keeper, record
from seer_pipe.launch.record import Outcome, Record
from seer_pipe.train.committed import committed_steps, store_of
from seer_pipe.train.heartbeat import read_heartbeat

OVER = ("done", "failed", "cancelled", "stopped", "died")


def find_runs(root: Path) -> list[Path]:
    """The runs at and below a folder."""
    names = ("launch.json", "heartbeat.json", "config.yaml")
    if any((root / name).exists() for name in names):
        return [root]
    return sorted(path for path in root.glob("*") if path.is_dir() and any((path / name).exists() for name in names))


def status(runs: Sequence[Path]) -> list[dict[str, Any]]:
    """One row per run: state, step, rate, loss, time left, restarts, last checkpoint, why it waits or ended.

    ``state``: queued, starting, running, stopping, done, failed, cancelled, stopped (until it is resumed), or died
    (its processes are gone without an exit status).
    """
    records = {run: record.read(run) for run in runs}
    queued = slurm.queue([item.job for item in records.values() if item and item.where == "slurm" and item.job])
    return [_row(run, records[run], queued) for run in runs]


def _row(run: Path, launched: Record | None, queued: dict[str, slurm.Queued]) -> dict[str, Any]:
    beat, outcome = read_heartbeat(run) or {}, record.read_outcome(run)
    state, why, since = _state(run, launched, beat, outcome, queued)
    steps = committed_steps(store_of(run))
    alive = state in ("running", "stopping")
    return {
        "run": str(run), "state": state, "why": why, "job": launched.job if launched else None,
        "step": beat.get("step", steps[-1] if steps else None), "steps": beat.get("steps"),
        "images_per_s": beat.get("images_per_s") if alive else None, "loss": beat.get("loss"),
        "eta_s": beat.get("eta_s") if alive else None, "restarts": beat.get("restarts", 0),
        "checkpoint": steps[-1] if steps else None, "world": beat.get("world"),
        "silent_s": time.time() - beat["time"] if alive and beat else None, "since": since,
    }  # fmt: skip


def _state(
    run: Path, launched: Record | None, beat: dict[str, Any], outcome: Outcome | None, queued: dict[str, slurm.Queued]
) -> tuple[str, str, float | None]:
    if launched is None:
        return _unlaunched(beat)
    if launched.where == "slurm":
        job = queued.get(launched.job)
        if job is not None and job.state == "PENDING":
            return "queued", f"{job.reason}{'' if job.start == 'N/A' else f', not before {job.start}'}", None
        if job is not None:
            began = datetime.fromisoformat(job.start).timestamp()
            return _going(beat, began)
    elif keeper.kept(run):
        if outcome is not None and outcome.what == "again" and time.time() < outcome.at:
            return "queued", outcome.why, None
        return _going(beat, launched.time if outcome is None else outcome.time)
    elif not launched.cancelled and (not launched.job or keeper.waits(run)):
        return "queued", "waits for its turn on this machine", None
    if outcome is not None and outcome.what != "again" and outcome.time >= launched.time:
        return outcome.what, outcome.why, outcome.time
    if beat.get("state") == "done":
        return "done", "", beat["time"]
    if launched.cancelled:
        return "cancelled", "", None
    return "died", "the job left the queue without an exit status: see seer-pipe logs; seer-pipe resume continues", None


def _going(beat: dict[str, Any], began: float) -> tuple[str, str, float]:
    """Of a job that runs: a heartbeat from before it began is the last start's."""
    if not beat or beat["time"] < began:
        return "starting", "", began
    return ("stopping" if beat["state"] in ("done", "failed") else beat["state"]), "", began


def _unlaunched(beat: dict[str, Any]) -> tuple[str, str, float | None]:
    if not beat:
        return "starting", "", None
    if beat["state"] in ("done", "failed"):
        return beat["state"], "", beat["time"]
    if beat["host"] == socket.gethostname() and not keeper.alive(beat["pid"]):
        return ("stopped", "", beat["time"]) if beat["state"] == "stopping" else ("died", "", beat["time"])
    return beat["state"], "", None


def logs(run: Path, rank: int, follow: bool) -> Iterator[str]:
    """What a rank printed, over all starts of the run, in order; ``follow``: until the run is over."""
    launched = record.read(run)
    if launched is None:
        raise UserError(f"{run}: was not launched (no launch.json), so nothing was kept of what it printed")
    read: dict[Path, int] = {}
    while True:
        over = status([run])[0]["state"] in OVER
        launched = record.read(run) or launched
        for job in launched.jobs:
            path = Path(launched.folder) / f"{job}_{rank}_log.out"
            if path.exists():
                with path.open(errors="replace") as file:
                    file.seek(read.get(path, 0))
                    yield file.read()
                    read[path] = file.tell()
        if over or not follow:
            break
        time.sleep(0.5)
    if not read:
        raise UserError(f"{run}: rank {rank} has printed nothing yet")
