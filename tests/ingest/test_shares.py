"""Shares of a run: processes with nothing in common but the store make what one process makes."""

import dataclasses
import json
import os
import shlex
import signal
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from ingest import at_work
from ingest.at_work import FOLDER, RUNNING, Sign, path_of, signs
from ingest.run import clear
from seer_pipe.shards import ShardWriter
from seer_pipe.share import Share
from seer_pipe.store import Store, open_store
from tests.ingest.helpers import COMMAND, files, seer_ingest, until
from tests.ingest.test_run import fill
from tests.ingest.web import Web


def status(out: object) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(seer_ingest("status", out, "--json").stdout)
    return found


def sign(share: str, **other: Any) -> Sign:
    """Of a process on another machine, a moment ago."""
    return Sign(**{"share": share, "host": "elsewhere", "pid": 7, "state": RUNNING, "error": "", "seen": time.time(),
                   "done": 2, "inputs": 8, "under_way": 2, "inputs_per_s": 4.0} | other)  # fmt: skip


def put(store: Store, given: Sign) -> None:
    store.put(path_of(Share.parse(given.share)), json.dumps(dataclasses.asdict(given)).encode())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["folder", "s3"])
def test_shares_in_any_order_make_what_one_process_makes(tmp_path: Path, s3: Any, kind: str) -> None:
    folder, out = fill(tmp_path / "in", 10), tmp_path / "shares"
    where = out
    if kind == "s3":
        s3.create_bucket(Bucket="shares")
        where = "s3://shares/set"
    arguments = ["--unit", 2, "--workers", 1]
    assert seer_ingest("folder", folder, "--out", tmp_path / "one", *arguments).returncode == 0
    for number, left in ((0, 3), (2, 2)):
        run = seer_ingest("folder", folder, "--out", where, *arguments, "--share", f"{number}/3")
        assert run.returncode == 0, run.stderr
        assert f"share {number}/3 is done; {left} of 5 units are left to other shares" in run.stdout
    early = seer_ingest("finish", where)
    assert early.returncode == 2
    assert "2 of 5 units are not done, 1 the first" in early.stderr
    found = status(where)
    assert (found["units_done"], found["done"], found["finished"], found["running"]) == (3, 6, False, [])
    run = seer_ingest("folder", folder, "--out", where, *arguments, "--share", "1/3")
    assert "10 images in 5 shards" in run.stdout
    assert seer_ingest("finish", where).stdout == run.stdout
    assert status(where)["finished"]
    if kind == "folder":
        assert files(out) == files(tmp_path / "one")
    else:
        assert sorted(entry.path for entry in open_store(where).list()) == sorted(files(tmp_path / "one"))


def test_another_share_waits_for_the_list_of_inputs(tmp_path: Path) -> None:
    folder, out = fill(tmp_path / "in", 3), tmp_path / "out"
    arguments = ["folder", folder, "--out", out, "--unit", 1, "--share"]
    with subprocess.Popen([*COMMAND, *map(str, [*arguments, "1/2"])], stderr=subprocess.PIPE, text=True) as second:
        assert second.stderr is not None
        assert "waiting for share 0/2, which lists the inputs" in second.stderr.readline()
        assert files(out) == {}
        assert seer_ingest(*arguments, "0/2").returncode == 0
        assert second.wait(60) == 0
    assert status(out)["finished"]


def test_who_runs_failed_or_fell_silent_is_told(tmp_path: Path) -> None:
    folder, out = fill(tmp_path / "in", 12), tmp_path / "out"
    arguments = ["folder", folder, "--out", out, "--unit", 2, "--share"]
    assert seer_ingest(*arguments, "0/6").returncode == 0
    store = open_store(out)
    put(store, sign("1/6"))
    put(store, sign("2/6", state="failed", error="no space left"))
    put(store, sign("3/6", seen=time.time() - 1000))
    with subprocess.Popen(["true"]) as gone:
        pass
    put(store, sign("4/6", host=socket.gethostname(), pid=gone.pid))
    found = status(out)
    assert [s["share"] for s in found["running"]] == ["1/6"]
    assert [s["share"] for s in found["failed"]] == ["2/6"]
    assert [s["share"] for s in found["silent"]] == ["3/6", "4/6"]
    assert (found["done"], found["inputs_per_s"], found["eta_s"]) == (4, 4.0, 2.0)
    said = seer_ingest("status", out).stdout
    assert "4 of 12 inputs done, 1 of 6 units\nrunning 1, 4.0 inputs/s, 2.0 s to go\n" in said
    assert "2/6      failed on elsewhere: no space left" in said
    put(store, sign("1/6", seen=0))
    assert "nothing is at work" in seer_ingest("status", out).stdout
    run = seer_ingest("folder", folder, "--out", out, "--unit", 2, "--share", "5/6")
    assert run.returncode == 0, run.stderr


def test_the_same_units_are_not_done_by_two(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On another machine a process is known by its signs alone: one that gives some is left to its work, one that is
    silent is replaced. Shares that have no unit in common do not mind each other."""
    monkeypatch.setattr(at_work, "SILENCE", 0.2)
    folder, out = fill(tmp_path / "in", 4), tmp_path / "out"
    arguments = ["folder", folder, "--out", out, "--unit", 1, "--share"]
    assert seer_ingest(*arguments, "0/4").returncode == 0
    store, beats = open_store(out), iter(range(1000))
    put(store, sign("1/4"))

    def another_beat(_: float) -> None:
        put(store, sign("1/4", done=next(beats)))

    monkeypatch.setattr(at_work.time, "sleep", another_beat)
    assert seer_ingest(*arguments, "2/4").returncode == 0
    for overlapping in ("1/4", "1/2"):
        run = seer_ingest(*arguments, overlapping)
        assert run.returncode == 2
        assert "share 1/4 is at work on elsewhere (process 7), with the same units" in run.stderr
    monkeypatch.undo()
    monkeypatch.setattr(at_work, "SILENCE", 0.2)
    monkeypatch.setattr(at_work, "LOOK", 0.05)
    assert seer_ingest(*arguments, "1/2").returncode == 0
    assert status(out)["finished"]
    assert not list(store.list(FOLDER))


def test_only_what_no_process_holds_is_cleared_away(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    writer = ShardWriter(store, "00000.tar")
    (held,) = tmp_path.iterdir()
    left = tmp_path / f".tmp-{'0' * 32}.tar"
    left.write_bytes(b"of a killed process")
    clear(tmp_path)
    assert list(tmp_path.iterdir()) == [held]
    writer.add("a", b"image", source="a", width=1, height=1)
    writer.commit()
    assert sorted(files(tmp_path)) == ["00000.parquet", "00000.tar", "rejected/00000.parquet"]


def test_shares_and_an_array_exclude_each_other(tmp_path: Path) -> None:
    run = seer_ingest("folder", fill(tmp_path / "in", 1), "--out", tmp_path / "out", "--slurm", "--share", "0/2")
    assert (run.returncode, "choose one" in run.stderr) == (2, True)
    run = seer_ingest("status", tmp_path / "out")
    assert (run.returncode, "no run of seer-ingest here" in run.stderr) == (2, True)


@pytest.mark.slow
def test_ten_shares_three_killed_make_what_one_process_makes(tmp_path: Path, server: Web) -> None:
    """A shell loop starts all ten; three of them are killed with all their processes, and started again."""
    paths = [f"/held/{number}" if number % 6 else f"/status/404?{number}" for number in range(60)]
    (tmp_path / "list.txt").write_text("\n".join(map(server.url, paths)))
    common = ["urls", tmp_path / "list.txt", "--unit", 2, "--allow-network", "127.0.0.0/8", "--workers", 1,
              "--read-timeout", 300]  # fmt: skip
    one, out = tmp_path / "one", tmp_path / "ten"
    server.released.set()
    assert seer_ingest(*common, "--out", one).returncode == 0
    command = shlex.join([*COMMAND, *map(str, [*common, "--out", out, "--share"])])
    server.released.clear()  # so that all are at work when the three are killed
    loop = f"for i in {{0..9}}; do setsid {command} $i/10 & done; wait"
    with subprocess.Popen(["bash", "-c", loop], stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL) as shell:
        until(lambda: (out / "ingest.json").exists() and len(signs(open_store(out))) == 10, patience=240)
        victims = [victim for victim in signs(open_store(out)) if victim.share in ("0/10", "4/10", "7/10")]
        for victim in victims:
            os.killpg(victim.pid, signal.SIGKILL)
        server.released.set()
        assert shell.wait(240) == 0
    found = status(out)
    assert (found["finished"], found["units_done"], found["running"], found["failed"]) == (False, 21, [], [])
    assert [silent["share"] for silent in found["silent"]] == [victim.share for victim in victims]
    for victim in victims:
        subprocess.run(["bash", "-c", f"{command} {victim.share}"], check=True, capture_output=True, timeout=120)
    assert status(out)["finished"]
    assert files(out) == files(one)
