"""The same job on this machine: stopped it goes on, killed it begins again, and the weights are the same."""

import os
import signal
import time
from pathlib import Path

import pytest
import yaml

from seer_pipe import config as settings
from seer_pipe.train.events import read_events
from seer_pipe.train.heartbeat import read_heartbeat
from seer_pipe.train.loop import train
from seer_pipe.train.telemetry import read_metrics
from tests.launch.helpers import (
    assert_same_run,
    frozen,
    launched,
    printed,
    recipe,
    seer_pipe,
    thaw,
    told,
    until,
)
from tests.train.helpers import make_pictures

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def asked(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("asked")
    (folder / "two.yaml").write_text("cluster: local\ntasks_per_node: 2\nbackoff_s: 1\n")
    pictures = make_pictures(folder / "pictures", [13, 0, 1, 20])
    return ["launch", str(recipe(folder, pictures)), "--cluster-config", str(folder / "two.yaml")]


def test_a_run_outlives_a_stop_and_a_kill(asked: list[str], tmp_path: Path) -> None:
    straight, run = tmp_path / "straight", tmp_path / "run"
    launched(*asked, "--out", straight)
    launched(*asked, "--out", run)
    processes = frozen(run)
    for process in processes:
        os.kill(process, signal.SIGTERM)
    thaw(processes)
    deadline = time.monotonic() + 500
    while "requeued: stopped" not in (run / "jobs" / "keeper.log").read_text():
        assert time.monotonic() < deadline
        time.sleep(0.05)
    at = told(run)["checkpoint"]
    processes = frozen(run, at + 2, after=processes)
    os.kill(processes[0], signal.SIGKILL)
    thaw(processes)
    assert until(run, "done")["restarts"] == 2
    assert "requeued in 1 s: crash 1 of at most 3 in a row" in (run / "jobs" / "keeper.log").read_text()
    until(straight, "done")
    assert_same_run(straight, run)
    assert printed(run).count("preflight: 2 ranks found each other") == 3
    answer = seer_pipe("status", tmp_path, "--json")
    assert answer.stdout.count('"done"') == 2


def test_settings_changed_on_purpose_outlive_a_kill(asked: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(settings.load(Path(asked[1]), ["train.images=64"]), run, lambda _: None)
    launched(*asked, "--tasks-per-node", 1, "--change", "train.images=256", "--out", run)
    processes = frozen(run, 10)
    os.kill(processes[0], signal.SIGKILL)
    thaw(processes)
    until(run, "done", steps=32)
    launched("resume", run, "--change", "optimizer.lr=0.5", "--change", "train.images=288")
    until(run, "done", steps=36)
    kept = yaml.safe_load((run / "config.yaml").read_text())["changes"]
    assert [(change["step"], change["settings"]) for change in kept] == [
        (8, {"train.images": [64, 256]}), (32, {"optimizer.lr": [1.0, 0.5], "train.images": [256, 288]}),
    ]  # fmt: skip
    changes = [event["settings"] for event in read_events(run) if event["event"] == "change"]
    assert changes == [change["settings"] for change in kept]


def test_a_run_that_dies_before_a_step_is_committed_begins_anew(asked: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    launched(*asked, "--out", run)
    processes = frozen(run, 1)
    before = told(run)["checkpoint"]
    os.kill(processes[1], signal.SIGKILL)
    thaw(processes)
    assert not before  # none, or that of the rehearsal before the first step
    assert until(run, "done")["restarts"] == 1


def test_each_run_of_a_sweep_is_cancelled_by_itself(asked: list[str], tmp_path: Path) -> None:
    more = "train.images=4000"  # so that none is finished before it is cancelled
    answer = seer_pipe("sweep", *asked[1:], more, "optimizer.lr=0.25,0.5,1.0", "--out", tmp_path / "runs")
    assert answer.returncode == 0, answer.stderr
    first, second, third = (tmp_path / "runs" / f"{more},optimizer.lr={rate}" for rate in (0.25, 0.5, 1.0))
    until(first, "running", steps=1)
    assert told(second)["state"] == told(third)["state"] == "queued"
    assert seer_pipe("cancel", second).stdout.endswith("cancelled\n")
    assert told(second)["state"] == "cancelled"
    assert told(first)["state"] == "running"
    assert seer_pipe("cancel", first).stdout.endswith("cancelled\n")
    assert told(first)["state"] == "cancelled"
    beat = read_heartbeat(first)
    assert beat is not None
    assert beat["state"] == "stopping"
    until(third, "running", steps=1)
    assert seer_pipe("cancel", third).stdout.endswith("cancelled\n")
    assert not read_metrics(second)
