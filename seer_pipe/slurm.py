"""What Slurm knows and does, through its own command-line tools: no accounting database is needed.

Both halves of the package submit through submitit, which knows a job's state from ``sacct`` alone; this asks
``squeue`` and ``scontrol``, which every Slurm answers.
"""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from seer_pipe.errors import UserError

PATIENCE = 60  # seconds for an answer of Slurm's controller


@dataclass(frozen=True)
class Queued:
    """A job that Slurm still has: waiting, running or ending."""

    state: str  # PENDING, RUNNING, COMPLETING, …
    reason: str  # why it waits
    start: str  # when it is to start, or started, as Slurm writes it; N/A where unknown
    nodes: str


#: States of jobs that are over, which squeue shows for a while when it is asked for a job by its number.
OVER = {"BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "OUT_OF_MEMORY", "PREEMPTED",
        "REVOKED", "TIMEOUT"}  # fmt: skip


def available() -> bool:
    """Whether there is a Slurm here that answers."""
    if shutil.which("sbatch") is None:
        return False
    return subprocess.run(["scontrol", "ping"], capture_output=True, timeout=PATIENCE).returncode == 0


def queue(jobs: Sequence[str]) -> dict[str, Queued]:
    """Those of ``jobs`` (``123``, or ``123_4`` of an array) that are not over."""
    if not jobs:
        return {}
    if shutil.which("squeue") is None:
        raise UserError("no Slurm here (squeue): ask where the job was launched")
    numbers = sorted({job.split("_")[0] for job in jobs})
    command = ["squeue", "--noheader", "--array", "--format=%i|%T|%r|%S|%N", "--jobs=" + ",".join(numbers)]
    answer = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    if answer.returncode != 0 and "Invalid job id" not in answer.stderr:  # it has forgotten the only job asked for
        reason = (answer.stderr.splitlines() or ["squeue printed nothing"])[-1]
        raise UserError(f"Slurm does not answer: {reason}; is SLURM_CONF set?")
    found = {}
    for line in answer.stdout.splitlines():
        job, state, reason, start, nodes = line.strip().split("|")
        if job in jobs and state not in OVER:
            found[job] = Queued(state, reason, start, nodes)
    return found


def signal(job: str, name: str) -> None:
    """Send a signal (``USR2``) to the job's processes, though not to its batch script."""
    _do("scancel", f"--signal={name}", job)


def cancel(job: str) -> None:
    _do("scancel", job)


def start_now(job: str) -> None:
    """Let a requeued job wait no longer than it must."""
    _do("scontrol", "update", f"JobId={job}", "StartTime=now")


def set_nodes(job: str, nodes: str) -> None:
    """Change the number of nodes (``2`` or ``1-2``) of a job that waits."""
    _do("scontrol", "update", f"JobId={job}", f"NumNodes={nodes}")


def _do(*command: str) -> None:
    answer = subprocess.run(command, capture_output=True, text=True, timeout=PATIENCE)
    if answer.returncode != 0:
        raise UserError(f"{' '.join(command)}: {answer.stderr.strip() or answer.stdout.strip()}")
