"""The units of a run spread over the workers of a Ray cluster, or of one that is started here for the run."""

from __future__ import annotations

import os
import re
import signal
import socket
import sys
import time
from typing import Any

from ingest.job_array import EVERY, LOOK, Work, say
from ingest.run import pending
from seer_pipe.errors import UserError

AGAIN = 20  # times that a task whose worker was lost is started again
CONNECT = 10.0  # seconds
PATIENCE = 20.0  # seconds that cancelled tasks have to leave nothing behind


def run_on_ray(work: Work, tasks: int, address: str) -> None:
    """Do ``work`` in ``tasks`` tasks of the Ray cluster at ``address`` (``local``: one of its own), and wait for them.

    A task that is lost with its worker is started again, and resumes. ChildProcessError where some units are not done
    in the end.
    """
    try:
        import ray
    except ImportError:
        raise UserError("--ray: Ray is not installed: pip install 'seer-pipe[ray]', on all machines of it") from None

    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # or it warns; nothing here is for a GPU
    handler = signal.getsignal(signal.SIGTERM)
    try:
        if place := re.fullmatch(r"(?:ray://)?(.+):(\d+)", address):  # Ray itself tries for eight minutes
            socket.create_connection((place[1], int(place[2])), CONNECT).close()
        ray.init(address=address, include_dashboard=False if address == "local" else None, log_to_driver=False)
    except (OSError, ValueError, RuntimeError) as error:
        raise UserError(f"--ray {address}: no Ray cluster answers: {str(error).splitlines()[0]}") from None
    signal.signal(signal.SIGTERM, handler)  # Ray sets its own
    try:
        cores = int(ray.cluster_resources().get("CPU", 1))
        workers = work.workers or max(1, cores // tasks)
        if workers > cores:
            raise UserError(f"workers = {workers}: the Ray cluster has {cores} cores, and no task would ever start")
        task = ray.remote(num_cpus=workers, max_retries=AGAIN)(Work.__call__)
        running = [task.remote(part) for part in work.divided(tasks, workers)]
        failures = _wait(ray, work, running)
    finally:
        ray.shutdown()
    if left := pending(work.plan):
        why = f": {failures[0]}" if failures else ""
        raise ChildProcessError(f"{len(left)} of {work.plan.units} units are not done; the same command resumes{why}")


def _wait(ray: Any, work: Work, running: list[Any]) -> list[str]:
    """Until all tasks are over; the first line of each one's error. A stop is handed on to them."""
    failures, shown = [], time.monotonic()
    try:
        while running:
            over, running = ray.wait(running, timeout=LOOK)
            for task in over:
                try:
                    ray.get(task)
                except ray.exceptions.RayError as error:
                    failures.append(str(getattr(error, "cause", None) or error).splitlines()[0])
            if running and time.monotonic() - shown >= EVERY:
                shown = time.monotonic()
                say(work.plan, len(running), work.as_json)
    except BaseException:
        for task in running:
            ray.cancel(task)
        print("stopping: what is under way is finished", file=sys.stderr, flush=True)
        ray.wait(running, num_returns=len(running), timeout=PATIENCE)
        raise
    return failures
