"""What each task of a job does."""

from __future__ import annotations

import fcntl
import os
import random
import signal
import socket
import sys
import time
import traceback
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

import submitit

from seer_pipe import config as settings
from seer_pipe.errors import UserError
from seer_pipe.launch import record

if TYPE_CHECKING:
    from seer_pipe.distributed.world import World

PATIENCE = 60  # seconds for a start before this one to let go of the run


@dataclass(frozen=True)
class Job:
    """One run, as every task of its job calls it; pickled, so it holds plain values.

    Its settings are read from launch.json at each start, and what there is to resume is found in the run's folder. A
    task that was asked to stop leaves with 0, as one that is done; how it ended it writes down, and ``after`` reads
    that.
    """

    run: Path
    start: int | None = None  # number of this start, from 0; Slurm counts for itself
    port: int | None = None  # of the rendezvous; by default one that follows from the job

    def __call__(self) -> None:
        for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
            signal.signal(number, self._stop_before_start)
        # Here, and not above: a stop that comes during these imports counts, and who submits a job needs none of them.
        from seer_pipe.distributed.world import RendezvousError, join
        from seer_pipe.run import start

        stack = ExitStack()  # left on a good end alone: a broken group may hang in its own farewell
        try:
            launched = record.read(self.run)
            if launched is None:
                raise FileNotFoundError(f"{self.run / 'launch.json'}: is not there")
            if launched.cancelled:
                self._leave("stopped", "cancelled", 0)
            config = settings.parse(launched.config, str(self.run))
            take_place(f"{self.run}:{self._name}", self.port)
            world = stack.enter_context(join(config.train.device))
            preflight(world)
            if world.is_first:
                wait_for_previous(self.run)
            finished = start(config, self.run, say, on_purpose=launched.on_purpose)
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)
            self._leave("crashed" if isinstance(error, RendezvousError) else "failed", str(error), 2)
        except BaseException as error:
            traceback.print_exc()
            self._leave("crashed", f"{type(error).__name__}: {error}", 1)
        self._end("done" if finished else "stopped", "")
        stack.close()

    def checkpoint(self) -> submitit.helpers.DelayedSubmission:
        """What submitit puts back, should its own handler see a signal before ours is set."""
        return submitit.helpers.DelayedSubmission(self)

    @property
    def _name(self) -> str:
        """Of this start, the same for all tasks and for the batch script."""
        job, start = submitit.JobEnvironment().job_id, os.environ.get("SLURM_RESTART_COUNT", "0")
        return f"{job}.{start}" if self.start is None else f"local.{self.start}"

    def _stop_before_start(self, number: int, _frame: object) -> None:
        if sys.exc_info()[0] is not None:
            return  # an error is on its way out, and that is how this ends: Slurm stops those that are left
        self._leave("stopped", signal.Signals(number).name, record.AGAIN)

    def _end(self, ending: record.Ending, why: str) -> None:
        rank = submitit.JobEnvironment().global_rank
        record.end(self.run, self._name, rank, ending, why, time.time())

    def _leave(self, ending: record.Ending, why: str, code: int) -> NoReturn:
        """End the process now, whatever its threads and its process group are doing."""
        self._end(ending, why)
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def take_place(name: str, port: int | None) -> None:
    """Set the variables that torch.distributed reads, from submitit's knowledge of the job.

    ``port`` of the rendezvous; by default one that follows from ``name``, which all tasks of a start share.
    """
    place = submitit.JobEnvironment()
    first = place.hostnames[0]
    port = port or random.Random(name).randint(20000, 32000)  # below those that systems give out
    os.environ.update(
        RANK=str(place.global_rank), WORLD_SIZE=str(place.num_tasks), LOCAL_RANK=str(place.local_rank),
        LOCAL_WORLD_SIZE=str(place.num_tasks // place.num_nodes), MASTER_PORT=str(port),
    )  # fmt: skip
    os.environ.setdefault("MASTER_ADDR", first if resolves(first) else os.environ.get(
        "SLURM_LAUNCH_NODE_IPADDR", "127.0.0.1"))  # fmt: skip


def say(line: str) -> None:
    print(line, flush=True)


def resolves(host: str) -> bool:
    try:
        socket.getaddrinfo(host, None)
    except OSError:
        return False
    return True


def preflight(world: World) -> None:
    """Say who is there, and add up over all of them once, before any data is touched."""
    import torch
    import torch.distributed as dist

    device = torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu"
    ranks = world.gather((world.rank, socket.gethostname(), os.getpid(), str(world.device), device))
    if world.size > 1:
        total = torch.tensor(world.rank, device=world.device)
        dist.all_reduce(total)
        if int(total) != world.size * (world.size - 1) // 2:
            raise RuntimeError(f"preflight: the ranks of {world.size} add up to {int(total)}")
    if world.is_first:
        for rank, host, process, place, name in ranks:
            say(f"rank {rank}  {host}  process {process}  {place}  {name}")
        say(f"preflight: {world.size} ranks found each other")


def wait_for_previous(run: Path) -> None:
    """A requeued job may begin before the last processes of its start before are gone."""
    run.mkdir(parents=True, exist_ok=True)
    deadline = time.monotonic() + PATIENCE
    with (run / ".lock").open("a") as file:
        while True:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except BlockingIOError:
                if time.monotonic() > deadline:
                    raise TimeoutError(f"{run}: another process still holds the run") from None
                time.sleep(0.5)
