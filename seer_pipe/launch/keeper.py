"""Does on one machine what Slurm does on a cluster: ``python -m seer_pipe.launch.keeper RUN…``, one after another.

Each start of a run is a job of submitit's local executor. What comes after it is decided as on Slurm.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
import time
from pathlib import Path
from typing import Any

import submitit

from seer_pipe.launch import record
from seer_pipe.launch.after import decide, describe
from seer_pipe.launch.cluster import minutes
from seer_pipe.launch.job import Job
from seer_pipe.launch.record import Outcome

LOCK = "jobs/.keeper"
GRACE = 20.0  # seconds that the other ranks may keep running once one has ended


class Keeper:
    """A signal stops the run under way and starts no other; `cancelled` in its record stops one run alone."""

    def __init__(self) -> None:
        self._stop = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._ask)

    def _ask(self, _number: int, _frame: object) -> None:
        self._stop = True

    def keep(self, run: Path) -> Outcome:
        """Start the run until it is done, has failed, or is to stop."""
        with (run / LOCK).open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            start = 0
            while True:
                self._start(run, start)
                outcome = decide(run, f"local.{start}", None)
                if self._stop and outcome.what == "again":
                    outcome = Outcome("stopped", "seer-pipe resume continues it", time.time(), 0.0)
                record.write_outcome(run, outcome)
                print(describe(outcome), flush=True)
                if outcome.what != "again":
                    return outcome
                while time.time() < outcome.at and not self._to_stop(run):
                    time.sleep(0.1)
                start += 1

    def _to_stop(self, run: Path) -> bool:
        launched = record.read(run)
        assert launched is not None
        return self._stop or launched.cancelled

    def _start(self, run: Path, start: int) -> None:
        if self._to_stop(run):
            return
        launched = record.read(run)
        assert launched is not None
        for path in (run / "jobs").glob(f"ended-local.{start}.*"):
            path.unlink()
        settings, limit = launched.settings, minutes(launched.settings.time)
        os.environ.update(settings.variables, SEER_PIPE_DEADLINE=str(time.time() + 60 * limit))
        executor = submitit.LocalExecutor(launched.folder)
        executor.update_parameters(
            timeout_min=limit, signal_delay_s=settings.signal_s, tasks_per_node=settings.tasks,
            gpus_per_node=settings.gpus_per_node, stderr_to_stdout=True,
        )  # fmt: skip
        job = executor.submit(Job(run, start, free_port()))
        record.change(run, jobs=[*launched.jobs, job.job_id])
        self._watch(run, job, settings.tasks)

    def _watch(self, run: Path, job: Any, tasks: int) -> None:
        """Wait for the end; forward a stop; end the ranks that outlive one of them."""
        controller, asked, alone = int(job.job_id), False, None
        while not job.done():
            if not asked and self._to_stop(run):
                os.kill(controller, signal.SIGTERM)  # which hands it on to the ranks
                asked = True
            left = children(controller)
            alone = (alone or time.monotonic()) if 0 < len(left) < tasks else None
            if alone is not None and time.monotonic() - alone > GRACE:
                for process in left:
                    os.kill(process, signal.SIGKILL)
            time.sleep(0.1)


def children(process: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{process}/task/{process}/children").read_text().split()]
    except FileNotFoundError:
        return []


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def kept(run: Path) -> bool:
    """Whether a keeper of this machine looks after the run."""
    try:
        with (run / LOCK).open() as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def waits(run: Path) -> bool:
    """Whether a keeper of this machine has still to come to the run."""
    launched = record.read(run)
    if launched is None or not launched.job or record.read_outcome(run) is not None or kept(run):
        return False
    return launched.host == socket.gethostname() and alive(int(launched.job))


def alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    keeper = Keeper()
    outcomes = [keeper.keep(Path(run)) for run in sys.argv[1:]]
    sys.exit(any(outcome.what == "failed" for outcome in outcomes))
