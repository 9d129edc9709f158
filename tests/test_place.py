"""Which process of a run this is: half an environment is told, and torchrun's ranks do not outlive it."""

import ctypes
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from seer_pipe.distributed.place import BY_TORCHRUN, Place, end_with_torchrun, find_place
from seer_pipe.distributed.world import RendezvousError, join
from seer_pipe.errors import UserError

NAMES = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT", BY_TORCHRUN)
WHOLE = {"RANK": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}


@pytest.fixture(autouse=True)
def alone(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in NAMES:
        monkeypatch.delenv(name, raising=False)


def test_one_process_or_that_of_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    assert find_place() == Place(0, 1, 0)
    for name, value in WHOLE.items():
        monkeypatch.setenv(name, value)
    assert find_place() == Place(1, 4, 0)
    monkeypatch.delenv("LOCAL_RANK")
    assert find_place() == Place(1, 4, 1)


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"WORLD_SIZE": None}, "RANK is set and WORLD_SIZE is not"),
        ({"RANK": None}, "WORLD_SIZE is set and RANK is not"),
        ({"RANK": ""}, "RANK=: must be a whole number"),
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE=two: must be a whole number"),
        ({"RANK": "-1"}, "RANK=-1: must be a whole number"),
        ({"RANK": "4"}, "RANK 4: must be from 0 to 3"),
        ({"WORLD_SIZE": "0"}, "RANK 1: must be from 0 to -1"),
        ({"LOCAL_RANK": "x"}, "LOCAL_RANK=x"),
        ({"MASTER_ADDR": None}, "MASTER_ADDR is not set"),
        ({"MASTER_ADDR": ""}, "MASTER_ADDR is not set"),
        ({"MASTER_PORT": None}, "MASTER_PORT is not set"),
        ({"MASTER_PORT": "70000"}, "MASTER_PORT 70000: give a free port"),
        ({"MASTER_PORT": ""}, "MASTER_PORT=: must be a whole number"),
    ],
)
def test_half_an_environment_is_one_line(
    changes: dict[str, str | None], told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in (WHOLE | changes).items():
        if value is not None:
            monkeypatch.setenv(name, value)
    with pytest.raises(UserError, match=told) as caught, join("cpu"):
        pass
    assert "\n" not in str(caught.value)


def test_a_taken_port_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        for name, value in (WHOLE | {"RANK": "0", "MASTER_PORT": str(taken.getsockname()[1])}).items():
            monkeypatch.setenv(name, value)
        with pytest.raises(RendezvousError, match=r"rank 0 of 4 .*is the port taken") as caught, join("cpu"):
            pass
    assert "\n" not in str(caught.value)


def test_a_closed_shell_does_not_end_a_run() -> None:
    """No signal is asked for at the parent's death but under torchrun."""
    asked = ctypes.c_int(-1)
    end_with_torchrun()
    assert ctypes.CDLL(None).prctl(2, ctypes.byref(asked)) == 0  # PR_GET_PDEATHSIG
    assert asked.value == 0


RANK = """
import os, sys, time
from pathlib import Path
from seer_pipe.distributed.world import join
with join("cpu") as world:
    world.barrier()
    Path(sys.argv[1], str(world.rank)).write_text(str(os.getpid()))
    time.sleep(600)
"""


@pytest.mark.slow
def test_a_killed_torchrun_leaves_no_ranks(tmp_path: Path) -> None:
    (tmp_path / "rank.py").write_text(RANK)
    words = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", tmp_path / "rank.py", tmp_path]
    torchrun = subprocess.Popen([sys.executable, *map(str, words)], stderr=subprocess.DEVNULL)
    files = [tmp_path / "0", tmp_path / "1"]
    wait_until(lambda: all(file.exists() and file.read_text() for file in files))
    ranks = [int(file.read_text()) for file in files]
    torchrun.send_signal(signal.SIGKILL)
    torchrun.wait()
    wait_until(lambda: not any(map(lives, ranks)))


def wait_until(there: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 120
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.1)


def lives(process: int) -> bool:
    """Whether it is there and no zombie, which nobody may have waited for."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
