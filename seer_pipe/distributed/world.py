"""The processes of a run.

A rank finds its place in the variables that torchrun (and the launcher) set; without them there is one process.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist

from seer_pipe.distributed.place import end_with_torchrun, find_place
from seer_pipe.errors import UserError

#: A rank that waits longer than this for another ends the run instead of hanging.
PATIENCE = timedelta(minutes=5)
T = TypeVar("T")


class RendezvousError(UserError):
    """The ranks did not find each other, which another start may."""


@dataclass(frozen=True)
class World:
    """This process among those of the run."""

    rank: int
    size: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def gather(self, item: Any) -> list[Any]:
        """The ``item`` of every rank, in order of rank, on every rank. For small Python objects."""
        if self.size == 1:
            return [item]
        items: list[Any] = [None] * self.size
        dist.all_gather_object(items, item)
        return items

    def first(self, action: Callable[[], T]) -> T:
        """What ``action`` returns or raises on the first rank, on every rank."""
        result: T | None = None
        problem: Exception | None = None
        if self.is_first:
            try:
                result = action()
            except Exception as error:
                problem = error
        result, problem = self.gather((result, problem))[0]
        if problem is not None:
            raise problem
        return cast(T, result)

    def any(self, flag: bool) -> bool:
        """Whether the flag is set on any rank. Travels between CPUs: the GPU is not waited for."""
        if self.size == 1:
            return flag
        flags = torch.tensor(int(flag))
        dist.all_reduce(flags, dist.ReduceOp.MAX)
        return bool(flags)

    def barrier(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextmanager
def join(device: str = "auto") -> Iterator[World]:
    """Enter the run as one of its processes; ``device`` is auto, cpu or cuda."""
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    elif device == "cuda" and not torch.cuda.is_available():
        raise UserError("train.device cuda: torch finds no CUDA device here; use cpu or auto")
    joined = dist.is_initialized()  # by the caller, who then leaves as well
    place = find_place()
    rank, size = (dist.get_rank(), dist.get_world_size()) if joined else (place.rank, place.size)
    here = torch.device("cpu")
    if device == "cuda":
        here = torch.device("cuda", place.local % torch.cuda.device_count())
        torch.cuda.set_device(here)
    end_with_torchrun()
    if size == 1 or joined:
        yield World(rank, size, here)
        return
    try:
        dist.init_process_group("cpu:gloo,cuda:nccl" if device == "cuda" else "gloo", timeout=PATIENCE)
    except dist.DistError as error:
        reason = str(error).strip().splitlines()[0]
        raise RendezvousError(f"rank {rank} of {size} found no others at {os.environ['MASTER_ADDR']}, port "
                              f"{os.environ['MASTER_PORT']}: {reason}; is the port taken (MASTER_PORT), and have all "
                              "ranks started?") from None  # fmt: skip
    try:
        yield World(rank, size, here)
    finally:
        dist.destroy_process_group()
