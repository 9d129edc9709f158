"""The files by which a run's jobs, their ends and their watchers know of each other.

RUN/launch.json                 how the run was launched, and as which job
RUN/jobs/                       submitit's folder: pickles, logs (of a sweep: beside the runs)
RUN/jobs/outcome.json           what came of the last start, and what is next
RUN/jobs/ended-JOB.START.RANK   how a rank ended, in its own words
"""

from __future__ import annotations

import fcntl
import json
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from seer_pipe.launch.cluster import Cluster
from seer_pipe.store import FolderStore

AGAIN = 75  # exit code of a task that was stopped before it had anything to save (EX_TEMPFAIL)
Ending = Literal["done", "stopped", "failed", "crashed"]


@dataclass(frozen=True)
class Record:
    """How a run was launched."""

    where: Literal["slurm", "local"]
    job: str  # its name now: Slurm's number, or the keeper's process
    host: str  # that it was launched on
    time: float
    folder: str  # submitit's
    config: dict[str, Any]
    cluster: dict[str, Any]
    on_purpose: list[str]  # settings that may differ from those of the run's finished steps
    jobs: list[str] = field(default_factory=list)  # that wrote logs, oldest first
    cancelled: bool = False

    @property
    def settings(self) -> Cluster:
        return Cluster.model_validate(self.cluster)


@dataclass(frozen=True)
class Outcome:
    """What came of a start: again, done, failed, cancelled or stopped."""

    what: Literal["again", "done", "failed", "cancelled", "stopped"]
    why: str
    time: float
    at: float  # when it starts again, if it does
    crashes: int = 0  # in a row
    step: int = 0  # of the newest checkpoint then


def read(run: Path) -> Record | None:
    text = _read(run / "launch.json")
    return None if text is None else Record(**text)


def write(run: Path, record: Record) -> None:
    FolderStore(run).put("launch.json", json.dumps(asdict(record), indent=1).encode())


def change(run: Path, **changes: Any) -> Record:
    """Change single fields while nobody else does."""
    with (run / "jobs" / ".record").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        record = read(run)
        assert record is not None
        record = replace(record, **changes)
        write(run, record)
    return record


def read_outcome(run: Path) -> Outcome | None:
    text = _read(run / "jobs" / "outcome.json")
    return None if text is None else Outcome(**text)


def write_outcome(run: Path, outcome: Outcome) -> None:
    FolderStore(run).put("jobs/outcome.json", json.dumps(asdict(outcome), indent=1).encode())


def end(run: Path, start: str, rank: int, ending: Ending, why: str, time: float) -> None:
    """``start``: JOB.NUMBER, the same for all ranks."""
    text = json.dumps({"rank": rank, "ending": ending, "why": why, "time": time})
    FolderStore(run).put(f"jobs/ended-{start}.{rank}", text.encode())


def endings(run: Path, start: str) -> list[dict[str, Any]]:
    """How the ranks of a start ended, the first to end first."""
    found = [_read(path) for path in (run / "jobs").glob(f"ended-{start}.*")]
    return sorted((ending for ending in found if ending), key=lambda ending: ending["time"])


def _read(path: Path) -> dict[str, Any] | None:
    try:
        tree: dict[str, Any] = json.loads(path.read_text())
    except FileNotFoundError:
        return None
    return tree
