"""Whatever ends a run in the middle, the next start continues exactly, or falls back to the last good one and says so.

Real processes, real signals, a real full disk, a real S3 server that is away for a while.
"""

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from seer_pipe import config as settings
from seer_pipe.data.loader import Batch, Loader
from seer_pipe.store import FolderStore
from seer_pipe.train.checkpoint import Checkpoints
from seer_pipe.train.committed import store_of
from seer_pipe.train.events import read_events
from seer_pipe.train.loop import train
from seer_pipe.train.signals import Wait
from seer_pipe.train.trainer import Hooks
from tests.data.faults import ACCESS, Rclone
from tests.train.helpers import Ranks, assert_same_run, losses, make_pictures, small, spoiled_pictures

STEPS = 13


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spoiled_pictures(tmp_path_factory.mktemp("pictures"))


def recipe(pictures: Path | str, **sections: dict[str, Any]) -> settings.Config:
    sections["train"] = {"images": 8 * STEPS, **sections.get("train", {})}
    return small(pictures, data={"max_bad_fraction": 0.5}, **sections)


def quiet(_line: str) -> None: ...


def kinds(run: Path) -> list[str]:
    return [event["event"] for event in read_events(run)]


@pytest.fixture(scope="module")
def straight(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one process that nothing disturbs."""
    run = tmp_path_factory.mktemp("straight") / "run"
    assert train(recipe(pictures), run, say=quiet)
    return run


@pytest.mark.slow
def test_asked_to_stop_in_every_phase(
    straight: Path, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One run, begun again after each; every stop has a checkpoint of its step, and no step is lost or made twice."""
    run = tmp_path / "run"
    no_data, saving, asked = threading.Event(), threading.Event(), []
    honest_make, honest_put = Loader._make, FolderStore.put

    def ask(phase: str, when: bool = True) -> None:
        if when and phase not in asked and len(asked) == start:  # once a start
            asked.append(phase)
            os.kill(os.getpid(), signal.SIGTERM)

    def make(self: Loader, step: int, samples: Any) -> Batch:
        if step == 5 and len(asked) == start == 3:
            threading.Timer(0.5, ask, ["waiting for data"]).start()
            no_data.wait(60)
        return honest_make(self, step, samples)

    def put(self: FolderStore, path: str, data: bytes) -> None:
        if path.startswith("step-00000009/"):
            ask("saving")
            saving.set()
        if path.startswith(f"step-{STEPS:08d}/"):
            ask("saving the last")
        honest_put(self, path, data)

    def say(line: str) -> None:
        ask("starting", "parameters with head" in line)
        ask("stepping", line.startswith("step 2/"))
        assert not line.startswith("step 10/") or saving.wait(60)

    def probe(_network: Any) -> float:
        ask("probing")
        return 0.5

    monkeypatch.setattr(Loader, "_make", make)
    monkeypatch.setattr(FolderStore, "put", put)

    config = recipe(pictures, probe={"path": "unused", "every_images": 48})  # after step 6
    hooks = Hooks(rehearse=lambda _run: ask("rehearsing"), probe=probe)
    for start in range(20):  # noqa: B007 (used by `ask`)
        if finished := train(config, run, say=say, hooks=hooks):
            break
        last = read_events(run)[-1]
        assert (last["event"], last["reason"]) == ("stop", "SIGTERM"), asked
        assert Checkpoints(store_of(run)).steps()[-1] == last["step"]
        if asked[-1] in ("starting", "rehearsing"):
            assert last["step"] == 0
        if asked[-1] == "waiting for data":
            assert last["step"] == 5
            no_data.set()
    assert finished
    assert asked == ["starting", "rehearsing", "stepping", "waiting for data", "probing", "saving", "saving the last"]
    assert kinds(run).count("stop") == len(asked) - 1  # asked while it ends, it ends
    assert_same_run(straight, run)


SECOND_SIGNAL = """
import hashlib, os, signal, sys, threading, time
from seer_pipe.train.signals import ONE_REQUEST, StopRequest
first, second, pause = signal.Signals[sys.argv[1]], signal.Signals[sys.argv[2]], float(sys.argv[3])
def send():
    os.kill(os.getpid(), first)
    time.sleep(pause * ONE_REQUEST)
    os.kill(os.getpid(), second)
    time.sleep(0.5)
    os._exit(0)  # still there
signal.signal(signal.SIGCHLD, lambda *_: None)
with StopRequest(60.0):
    threading.Thread(target=send).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 1 << 30)  # minutes in C, where no handler runs, as in a collective
"""


@pytest.mark.parametrize(("first", "second", "pause", "code"), [
    ("SIGTERM", "SIGTERM", 1.2, 128 + signal.SIGTERM),
    ("SIGUSR2", "SIGINT", 1.2, 128 + signal.SIGINT),
    ("SIGINT", "SIGINT", 0.1, 0),  # a terminal and torchrun both send it
    ("SIGUSR2", "SIGTERM", 1.2, 0),  # Slurm's warning, and its time limit
    ("SIGCHLD", "SIGCHLD", 1.2, 0),  # where a library has a handler for it, and children end
])  # fmt: skip
def test_a_second_signal_ends_at_once(first: str, second: str, pause: float, code: int) -> None:
    """Also a process that hangs inside a collective; but not the same request that comes twice."""
    command = [sys.executable, "-c", SECOND_SIGNAL, first, second, str(pause)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    assert ended.returncode == code, ended.stderr
    assert ("again: ended at once" in ended.stderr) == (code > 0)


def test_two_starts_at_once(pictures: Path, tmp_path: Path) -> None:
    """One goes on, the other is refused in one line."""
    run = tmp_path / "run"
    config = recipe(pictures, train={"images": 24})
    starts = [Ranks(config, run), Ranks(config, run)]
    codes = [start.ends() for start in starts]
    assert sorted(codes) == [[0], [2]]
    assert "this run is already running" in starts[codes.index([2])].errors(0)
    assert kinds(run) == ["start", "checkpoint", "checkpoint", "done"]


def test_too_little_room_is_told_before_the_first_step(pictures: Path, tmp_path: Path) -> None:
    """And again by the next start: the checkpoint that the rehearsal left does not hide it."""
    config = recipe(pictures, train={"keep": 10**9})
    for _ in range(2):
        start = Ranks(config, tmp_path / "run")
        assert start.ends() == [2]
        assert "make room, or lower train.keep" in start.errors(0)
    assert losses(tmp_path / "run") == {}


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own; 64 MB hold two checkpoints of these runs and a half."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", disk], capture_output=True, check=False
    )
    if mounted.returncode:
        pytest.skip("may not mount a small disk here")
    yield disk
    subprocess.run(["umount", disk], check=True)


def fill(disk: Path, leave: int) -> None:
    """Take all of a disk's room but ``leave`` bytes. What others take meanwhile is not there to be taken."""
    with suppress(OSError), (disk / "filler").open("ab", buffering=0) as file:
        file.write(bytes(max(0, shutil.disk_usage(disk).free - leave)))


@contextmanager
def kept_full(disk: Path) -> Iterator[None]:
    """What is given back, as of a save that failed, is taken at once."""
    over = threading.Event()

    def take() -> None:
        while not over.wait(0.005):
            fill(disk, leave=0)

    thread = threading.Thread(target=take)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


@pytest.mark.slow
def test_a_disk_that_is_full_for_a_while(straight: Path, pictures: Path, small_disk: Path) -> None:
    """A save that finds no room is told, leaves nothing behind, and the run goes on; the next may succeed."""
    run, said = small_disk / "run", []

    def take_and_give(line: str) -> None:
        said.append(line)
        if line.startswith("step 1/"):
            fill(small_disk, leave=2 << 20)
        if line.startswith("step 5/"):
            assert not list((run / "checkpoints").glob("step-00000003/*"))
            (small_disk / "filler").unlink()

    assert train(recipe(pictures, train={"keep": 1}), run, say=take_and_give)
    assert any("checkpoint of step 3 could not be saved" in line and "No space left" in line for line in said)
    assert kinds(run) == ["start", "checkpoint", "warning", *["checkpoint"] * 4, "done"]
    assert_same_run(straight, run)


@pytest.mark.slow
def test_a_disk_that_stays_full(straight: Path, pictures: Path, small_disk: Path) -> None:
    """Where there is no room for a line either the run ends; with room, the same command goes on."""
    command = [
        sys.executable,
        "-m",
        "seer_pipe",
        "train",
        str(small_disk / "recipe.yaml"),
        "--out",
        str(small_disk / "run"),
    ]
    config = recipe(pictures, train={"keep": 1})
    settings.save(config, settings.derive(config, 34), small_disk / "recipe.yaml")
    first = Ranks(config, small_disk / "run")
    first.until("step 4/")
    with kept_full(small_disk):
        ended = first.ends()
        full = subprocess.run(command, capture_output=True, text=True, check=False, timeout=600)
    assert ended != [0]
    assert full.returncode == 2
    assert full.stderr.count("\n") == 1
    assert "No space left on device; make room" in full.stderr
    (small_disk / "filler").unlink()
    assert train(config, small_disk / "run", say=quiet)
    assert_same_run(straight, small_disk / "run")


def die_at_write(number: int, half: bool, rank: int, here: int) -> None:
    """End this process, as by kill -9, before or half way through its so-many-th write of a checkpoint of a step."""
    if here != rank:
        return
    honest, left = FolderStore.put, [number]

    def put(self: FolderStore, path: str, data: bytes) -> None:
        if path.startswith("step-") and not path.startswith("step-00000000/"):
            left[0] -= 1
            if left[0] == 0:
                if half:
                    self._temporary(path).write_bytes(data[: len(data) // 2])
                os.kill(os.getpid(), signal.SIGKILL)
        honest(self, path, data)

    FolderStore.put = put  # type: ignore[method-assign]


def no_more_data(rank: int) -> None:
    """The second rank gets no seventh batch."""
    honest = Loader._make

    def make(self: Loader, step: int, samples: Any) -> Batch:
        if step == 6 and rank == 1:
            threading.Event().wait()
        return honest(self, step, samples)

    Loader._make = make  # type: ignore[method-assign]
    Wait.PATIENCE = 1.0


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_killed_at_every_write_and_at_any_moment(pictures: Path, tmp_path: Path, parallel: str) -> None:
    """Two ranks: at each write of a save that rank makes, one rank or all at some moment, asked to stop while one waits
    for data that does not come; then a run to the end."""
    config = recipe(pictures, train={"parallel": parallel, "images": 64}, health={"timeout": 60.0})
    assert Ranks(config, tmp_path / "straight", 2).ends() == [0, 0]
    run = tmp_path / "run"
    writes = [(0, number) for number in range(1, 5)] + [(1, 1)]  # tensors, index, state and marker; tensors
    if parallel == "ddp":  # the same code writes
        writes = writes[:1]
    for count, (rank, number) in enumerate(writes):
        start = Ranks(config, run, 2, partial(die_at_write, number, count % 2 == 0, rank))
        codes = start.ends()
        assert codes[rank] == -signal.SIGKILL, start.errors(rank)
        assert codes[1 - rank] not in (0, None)
        assert Checkpoints(store_of(run)).steps() == [0]
    for line, killed in ("step 2/", [0]), ("step 4/", [1]), ("step 5/", [0, 1]):
        start = Ranks(config, run, 2)
        start.until(line)
        for rank in killed:
            start.processes[rank].kill()
        assert 0 not in start.ends()
    start = Ranks(config, run, 2, no_more_data)
    start.until("step 6/")
    for process in start.processes:
        process.terminate()
    assert start.ends()[1] == 130
    assert "SIGTERM, and no data for 1 s: this rank ends" in start.errors(1)
    assert Ranks(config, run, 2).ends() == [0, 0]
    assert_same_run(tmp_path / "straight", run)


@pytest.mark.slow
def test_a_store_that_is_away_for_a_while(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Images and checkpoints on S3, its server stopped in the middle of the run: it waits, and nothing differs."""
    (tmp_path / "root/bucket").mkdir(parents=True)
    server, away = Rclone(tmp_path / "root"), []
    for name, value in (ACCESS | {"AWS_ENDPOINT_URL": "http://{}:{}".format(*server.address)}).items():
        monkeypatch.setenv(name, value)
    try:
        make_pictures("s3://bucket/pictures", [13, 0, 1, 20])

        def stop_and_start(line: str) -> None:
            if line.startswith(("step 2/", "step 3/")):  # before a read of the next epoch, and before a save
                for timer in away:  # it is back, or it would be started twice
                    timer.join()
                server.stop()
                back = threading.Timer(3.0, server.start)
                back.start()
                away.append(back)

        ended = {}
        for name, say in ("straight", quiet), ("run", stop_and_start):
            config = recipe("s3://bucket/pictures", train={"checkpoints": f"s3://bucket/{name}"})
            assert train(config, tmp_path / name, say=say)
            ended[name] = kinds(tmp_path / name)
        assert len(away) == 2
        assert ended["run"] == ended["straight"]
        assert not (tmp_path / "run/checkpoints").exists()
        assert_same_run(tmp_path / "straight", tmp_path / "run")
    finally:
        for timer in away:
            timer.join()
        server.stop()
