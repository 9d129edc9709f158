"""The units of a run spread over a Slurm job array, or over processes here where there is no Slurm."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ingest.index import IndexSink, as_they_are
from ingest.plan import INPUTS, UnitPlan
from ingest.run import Process, ingest, pending
from ingest.sources import Source
from ingest.unit import SINKS, MakeSink
from ingest.workers import Settings, pool_for
from seer_pipe import slurm
from seer_pipe.errors import UserError
from seer_pipe.share import Share

EVERY = 10.0  # seconds between two lines of progress
LOOK = 1.0  # seconds between two looks at the jobs
MINUTES = 24 * 60  # of a job, where the parameters say nothing else
#: At the end of a Slurm job: one that failed or was killed is queued again, up to three times. The call ends this
#: script as well, which has to outlive it: the new start is put off or else brought forward, from two minutes.
AGAIN = """code=$?
if [ $code != 0 ] && [ ${SLURM_RESTART_COUNT:-0} -lt 3 ]; then
  trap "" TERM
  scontrol requeue $SLURM_JOB_ID && scontrol update JobId=$SLURM_JOB_ID StartTime=now+5
fi
exit $code"""


@dataclass(frozen=True)
class Work:
    """Some units of a plan, and all that is needed to do those of them that are not done."""

    source: Source
    plan: UnitPlan
    share: Share  # what the units are called
    units: Sequence[int]
    wanted: Settings
    workers: int | None
    memory: int  # bytes under way
    as_json: bool

    def __call__(self) -> None:
        left = set(pending(self.plan))
        todo = [unit for unit in self.units if unit in left]
        if todo:
            with pool_for(self.wanted, self.workers) as pool:
                sink: MakeSink = SINKS[self.plan.media]
                process: Process = pool.process
                if self.plan.in_place:
                    sink, process = IndexSink, as_they_are(pool.process)
                ingest(
                    self.source, self.plan, todo, process, sink,
                    share=self.share, earlier=sum(self.plan.size(unit) for unit in self.units if unit not in left),
                    memory=self.memory, as_json=self.as_json,
                )  # fmt: skip

    def divided(self, tasks: int, workers: int | None) -> list[Work]:
        """The shares of so many tasks, of those that have any of the units; each with so many ``workers``."""
        shares = (Share(task, tasks) for task in range(tasks))
        parts = (replace(self, share=s, units=s.part(self.units), workers=workers, as_json=True) for s in shares)
        return [part for part in parts if part.units]

    def checkpoint(self) -> Any:
        """What Slurm is to do again after a preemption or a time-out: the same, which resumes."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def run_array(work: Work, tasks: int, parameters: str) -> None:
    """Do ``work`` in ``tasks`` jobs, and wait for them. ChildProcessError where some units are not done then."""
    import submitit

    root = work.plan.store.local_path(INPUTS)
    folder = root.parent / "jobs" if root is not None else Path("seer-ingest-jobs").absolute()
    here = not slurm.available()
    executor = submitit.AutoExecutor(folder, cluster="local" if here else "slurm")
    workers = work.workers or (max(1, len(os.sched_getaffinity(0)) // tasks) if here else None)
    try:
        executor.update_parameters(
            **{"name": "seer-ingest", "timeout_min": MINUTES, "slurm_teardown": [AGAIN]} | parsed(parameters)
        )
    except (NameError, TypeError) as error:
        raise UserError(f"slurm_parameters: {str(error).splitlines()[0]}") from None
    jobs = executor.map_array(Work.__call__, work.divided(tasks, workers))
    shown = time.monotonic()
    try:
        while running := sum(not job.done() for job in jobs) if here else len(slurm.queue([j.job_id for j in jobs])):
            time.sleep(LOOK)
            if time.monotonic() - shown >= EVERY:
                shown = time.monotonic()
                say(work.plan, running, work.as_json)
    except BaseException:
        for job in jobs:
            job.cancel()
        raise
    if left := pending(work.plan):
        raise ChildProcessError(
            f"{len(left)} of {work.plan.units} units are not done: see {folder}; the same command resumes"
        )


def parsed(parameters: str) -> dict[str, Any]:
    """``name=value,…`` as submitit wants it: what is not one of its general parameters is Slurm's own."""
    general = ("cpus_per_task", "gpus_per_node", "mem_gb", "name", "timeout_min")
    found: dict[str, Any] = {}
    for part in filter(None, parameters.split(",")):
        name, equals, value = part.strip().partition("=")
        if not equals:
            raise UserError(f"slurm_parameters: {part!r}: write name=value,name=value")
        found[name if name in general else f"slurm_{name}"] = int(value) if value.isdecimal() else value
    return found


def say(plan: UnitPlan, running: int, as_json: bool) -> None:
    done = plan.inputs - sum(map(plan.size, pending(plan)))
    if as_json or not sys.stderr.isatty():
        print(json.dumps({"done": done, "inputs": plan.inputs, "jobs": running}), file=sys.stderr, flush=True)
    else:
        print(f"{done} of {plan.inputs} inputs done, {running} jobs at work", file=sys.stderr, flush=True)
