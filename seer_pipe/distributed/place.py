"""Which of a run's processes this one is, from the variables that torchrun (and the launcher) set."""

from __future__ import annotations

import ctypes
import os
import signal
from dataclasses import dataclass

from seer_pipe.errors import UserError

BY_TORCHRUN = "TORCHELASTIC_RUN_ID"  # set for the processes that torchrun starts, and by nothing else
PR_SET_PDEATHSIG = 1  # linux/prctl.h


@dataclass(frozen=True)
class Place:
    rank: int
    size: int
    local: int  # rank among those of this node


def find_place() -> Place:
    """The variables' place; of one process alone where there are none. UserError where they are no place."""
    rank, size = _number("RANK"), _number("WORLD_SIZE")
    if rank is None and size is None:
        return Place(0, 1, 0)
    if rank is None or size is None:
        here, absent = ("RANK", "WORLD_SIZE") if size is None else ("WORLD_SIZE", "RANK")
        raise UserError(f"{here} is set and {absent} is not: start the processes by torchrun, or unset {here}")
    if not 0 <= rank < size:
        raise UserError(f"RANK {rank}: must be from 0 to {size - 1}, for WORLD_SIZE is {size}")
    local = _number("LOCAL_RANK")
    if size > 1:
        if not os.environ.get("MASTER_ADDR"):
            raise UserError("MASTER_ADDR is not set: start the processes by torchrun, or name the first one's host")
        port = _number("MASTER_PORT")
        if port is None or not 0 < port < 1 << 16:
            raise UserError(f"MASTER_PORT {'is not set' if port is None else port}: give a free port of the first host")
    return Place(rank, size, rank if local is None else local)


def _number(name: str) -> int | None:
    text = os.environ.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdigit()):
        raise UserError(f"{name}={text}: must be a whole number; start the processes by torchrun, or unset it")
    return int(text)


def end_with_torchrun() -> None:
    """Ask this process to stop (SIGTERM) when the torchrun that started it is gone, killed as it may be.

    Nothing happens without torchrun: a run outlives the shell that it was started from. Linux alone.
    """
    if BY_TORCHRUN not in os.environ or not hasattr(libc := ctypes.CDLL(None), "prctl"):
        return
    parent = os.getppid()
    libc.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it has gone meanwhile, so no signal will come
        os.kill(os.getpid(), signal.SIGTERM)
