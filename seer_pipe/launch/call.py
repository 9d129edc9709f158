"""A verb of the command line as a job: every task runs it, and what the first one printed comes back."""

from __future__ import annotations

import io
import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stdout, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import submitit
from submitit.core.utils import FailedJobError, JobPaths

from seer_pipe import slurm
from seer_pipe.errors import UserError
from seer_pipe.launch.cluster import Cluster, minutes
from seer_pipe.launch.job import take_place
from seer_pipe.launch.keeper import children, free_port
from seer_pipe.launch.submit import place, refusal, resources, snapshot

LOOK = 0.5  # seconds between two looks at the job
SHARED = 15.0  # seconds in which a shared file system shows what another node wrote


@dataclass(frozen=True)
class Call:
    """A verb and its arguments; pickled, so the verb is a function of a module and the arguments are plain values."""

    verb: Callable[..., None]
    arguments: dict[str, Any]
    port: int | None = None  # of the rendezvous; by default one that follows from the job

    def __call__(self) -> str:
        take_place(f"call:{submitit.JobEnvironment().job_id}", self.port)
        with redirect_stdout(io.StringIO()) as printed:
            self.verb(**self.arguments)
        return printed.getvalue()

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What is done again after a preemption."""
        return submitit.helpers.DelayedSubmission(self)


def run_as_job(call: Call, folder: Path, cluster: Cluster) -> str:
    """What the first task printed, once the job is done; UserError where a task failed. ``folder`` keeps the logs."""
    where = place(cluster)
    folder.mkdir(parents=True, exist_ok=True)
    if where == "slurm":
        executor: Any = submitit.SlurmExecutor(folder)
        code = snapshot(folder) if cluster.snapshot else None
        executor.update_parameters(job_name=f"seer-pipe-{call.verb.__name__}", **resources(cluster, code))
    else:
        os.environ.update(cluster.variables)
        call = replace(call, port=free_port())
        executor = submitit.LocalExecutor(folder)
        executor.update_parameters(
            timeout_min=minutes(cluster.time), signal_delay_s=cluster.signal_s, tasks_per_node=cluster.tasks,
            gpus_per_node=cluster.gpus_per_node, stderr_to_stdout=True,
        )  # fmt: skip
    try:
        job = executor.submit(call)
    except FailedJobError as error:
        raise refusal(error) from None
    print(f"job {job.job_id} on {'Slurm' if where == 'slurm' else 'this machine'}; it prints to "
          f"{folder}/{job.job_id}_0_log.out", file=sys.stderr)  # fmt: skip
    tasks = [JobPaths(folder, job.job_id, task) for task in range(cluster.nodes * cluster.tasks)]
    try:
        return _wait(tasks, lambda: bool(slurm.queue([job.job_id])) if where == "slurm" else not job.done())
    except BaseException:
        if where == "slurm":
            job.cancel()
        else:
            for process in children(int(job.job_id)):
                with suppress(ProcessLookupError):
                    os.kill(process, signal.SIGKILL)
        raise


def _wait(tasks: list[JobPaths], going: Callable[[], bool]) -> str:
    """The first task's result, once all have one. A task that failed ends the others, or is waited for no longer."""
    patience: float | None = None
    while True:
        here = going()  # asked first: what is gone has left its results
        found = [pickle.loads(task.result_pickle.read_bytes()) for task in tasks if task.result_pickle.exists()]
        wrong = [said.strip().splitlines()[-1] for what, said in found if what == "error"]
        if len(found) == len(tasks) and not wrong:
            return str(found[0][1])
        if wrong or not here:
            patience = patience or time.monotonic() + SHARED
        if wrong and (not here or time.monotonic() > (patience or 0)):
            raise UserError(f"job {tasks[0].job_id}: {wrong[0].removeprefix('seer_pipe.errors.UserError: ')}")
        if not here and time.monotonic() > (patience or 0):
            raise UserError(f"job {tasks[0].job_id} ended without a result: see {tasks[0].stdout}")
        time.sleep(LOOK)
