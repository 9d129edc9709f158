"""Runs a function on several gloo ranks, so that distributed code is tested for what it is."""

import os
import tempfile
import time
import traceback
from collections.abc import Callable
from datetime import timedelta
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from seer_pipe.distributed import parts

_TIMEOUT = timedelta(seconds=900)  # of a slow test on a busy machine; a test has a limit of its own
# A server that has imported what ranks need (fully_shard loads the compiler) and forks every rank: milliseconds
# instead of seconds a rank.
processes = get_context("forkserver")
processes.set_forkserver_preload(
    ["torch.distributed.fsdp", "torch._dynamo", "pytest", "hypothesis", "seer_pipe.cli", "seer_pipe.run"]
)


def run_ranks(world: int, function: Callable[..., Any], *args: Any) -> list[Any]:
    """Calls ``function(*args)`` in `world` processes joined by gloo and returns what each rank returned.

    `function` is a module-level function of a test file; it asks ``torch.distributed`` for its rank.
    What it returns must be picklable. The first rank that fails ends the others, and its traceback is raised.
    """
    os.environ["OMP_NUM_THREADS"] = "1"
    with tempfile.TemporaryDirectory() as folder:
        ranks = [
            processes.Process(target=_rank, args=(rank, world, folder, function, args), daemon=True)
            for rank in range(world)
        ]
        for process in ranks:
            process.start()
        try:
            _join(ranks, Path(folder))
        finally:
            for process in ranks:
                process.kill()
                process.join()
        return [torch.load(Path(folder) / f"{rank}.pt", weights_only=False) for rank in range(world)]


def _join(ranks: list[Any], folder: Path) -> None:
    deadline = time.monotonic() + _TIMEOUT.total_seconds()
    while any(process.is_alive() for process in ranks):
        failed = any(folder.glob("*.txt")) or any(process.exitcode for process in ranks)
        if failed or time.monotonic() > deadline:
            break
        time.sleep(0.01)
    failures = sorted(folder.glob("*.txt"), key=lambda file: file.stat().st_mtime_ns)
    if failures:  # the earliest is the cause; the other ranks only lost their peer
        raise RuntimeError(f"rank {failures[0].stem} of {len(ranks)} failed:\n{failures[0].read_text()}")
    codes = [process.exitcode for process in ranks]
    if any(code != 0 for code in codes):
        raise RuntimeError(f"ranks ended with exit codes {codes} (None: still running at the time-out)")


def _rank(rank: int, world: int, folder: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
    torch.set_num_threads(1)
    store = (Path(folder) / "rendezvous").as_uri()
    dist.init_process_group("gloo", init_method=store, rank=rank, world_size=world, timeout=_TIMEOUT)
    try:
        torch.save(function(*args), Path(folder) / f"{rank}.pt")
    except BaseException:
        report = Path(folder) / f"{rank}.tmp"
        report.write_text(traceback.format_exc())
        report.rename(report.with_suffix(".txt"))  # whole or not there: the parent is watching
    finally:
        dist.destroy_process_group()


def whole(tensor: Tensor) -> Tensor:
    """The logical tensor on the CPU, whatever its sharding. All ranks must call it."""
    return parts.whole(tensor).detach().cpu().contiguous()
