"""Two ranks on two nodes of a real Slurm: whatever happens to the job, the weights are those of a run undisturbed."""

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
import torch

from seer_pipe import config as settings
from seer_pipe.evaluate.results import kept
from seer_pipe.train.events import read_events
from seer_pipe.train.telemetry import read_metrics
from tests.launch.helpers import (
    COMMAND,
    STEPS,
    assert_same_run,
    frozen,
    launched,
    printed,
    ranks,
    recipe,
    seer_pipe,
    thaw,
    told,
    until,
)
from tests.train.helpers import make_pictures

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def asked(slurm_cluster: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """The beginning of a launch: a recipe on two nodes, one rank each, quick to begin again."""
    folder = tmp_path_factory.mktemp("asked")
    pictures = make_pictures(folder / "pictures", [13, 0, 1, 20])
    (folder / "two.yaml").write_text("cluster: slurm\nnodes: 2\ntime: 30m\nsignal_s: 45\nbackoff_s: 1\n")
    return ["launch", str(recipe(folder, pictures)), "--cluster-config", str(folder / "two.yaml")]


@pytest.fixture(scope="module")
def straight(asked: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A launched run that nothing disturbs."""
    run = tmp_path_factory.mktemp("straight") / "run"
    job = launched(*asked, "--out", run)
    row = until(run, "running", "stopping", "done", steps=1)
    assert (row["job"], row["steps"], row["world"], row["restarts"]) == (job, STEPS, 2, 0)
    row = until(run, "done")
    assert (row["step"], row["checkpoint"], row["why"]) == (STEPS, STEPS, "")
    return run


def test_the_ranks_find_each_other_before_data_is_touched(straight: Path) -> None:
    text = printed(straight)
    assert text.index("preflight: 2 ranks found each other") < text.index("step 1/")
    assert len(ranks(straight)) == 2
    assert f"done: {STEPS} steps" in seer_pipe("logs", straight).stdout


def test_an_evaluation_and_an_export_as_jobs(straight: Path, tmp_path: Path) -> None:
    data = settings.load(straight / "config.yaml").data.paths[0]
    found = seer_pipe("eval", "retrieval", straight, "--data", data, "--slurm", "--nodes", 2, "--time", "20m", "--json")
    assert found.returncode == 0, found.stderr
    assert json.loads(found.stdout)["images"] == 34
    assert json.loads(found.stdout) == next(iter(kept(straight).values()))
    wrong = seer_pipe("eval", "retrieval", straight, "--data", tmp_path, "--slurm", "--time", "20m")
    assert wrong.returncode == 2
    assert "no shard set here" in wrong.stderr.splitlines()[-1]
    done = seer_pipe("export", straight, "--out", tmp_path / "out", "--slurm", "--time", "20m")
    assert (done.returncode, done.stdout) == (0, f"{tmp_path / 'out'}\n"), done.stderr
    assert (tmp_path / "out" / "model.safetensors").is_file()


def test_the_time_limit_ends_a_start_and_not_the_run(straight: Path, asked: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = launched(*asked, "--out", run)
    processes = frozen(run)
    assert told(run)["state"] in ("starting", "running")
    limit(job, -(-(elapsed(job) + 50) // 60))  # the signal comes 45 s before, which leaves time for the checkpoint
    wait_for(signal.SIGUSR2, processes)
    thaw(processes)
    until(run, "queued")
    limit(job, 30)  # of the next start
    assert told(run)["checkpoint"] == max(row["step"] for row in read_metrics(run))
    row = until(run, "done")
    assert (row["job"], row["restarts"]) == (job, 1)
    assert "is committed; nothing is wrong" in printed(run)
    assert_same_run(straight, run)


def test_requeued_by_hand(straight: Path, asked: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = launched(*asked, "--out", run)
    frozen(run)
    subprocess.run(["scontrol", "requeue", job], check=True)  # wakes the ranks, and asks them to stop
    assert until(run, "queued")["why"]
    assert until(run, "done")["restarts"] == 1
    seen = [event["event"] for event in read_events(run) if event["event"] not in ("checkpoint", "stop")]
    assert seen == ["start", "resume", "done"]  # and a stop, if KillWait left the time for it
    assert_same_run(straight, run)


def test_preempted_by_a_job_that_matters_more(straight: Path, asked: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    launched(*asked, "--out", run)
    processes = frozen(run)
    more = ["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--wait", "--output=/dev/null", "--wrap=true"]
    with subprocess.Popen(more, stdout=subprocess.DEVNULL) as other:
        wait_for(signal.SIGUSR2, processes)
        thaw(processes)
        assert other.wait() == 0
    assert until(run, "done")["restarts"] == 1
    assert "is committed; nothing is wrong" in printed(run)
    assert_same_run(straight, run)


def test_a_killed_rank_is_a_crash_that_is_begun_again(straight: Path, asked: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    launched(*asked, "--out", run)
    processes = frozen(run)
    os.kill(processes[1], signal.SIGKILL)
    thaw(processes)
    assert until(run, "done")["restarts"] == 1
    assert "crash 1 of at most 3 in a row" in printed(run)
    assert_same_run(straight, run)


def test_cancelled_and_resumed(straight: Path, asked: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    job = launched(*asked, "--out", run)
    processes = frozen(run)
    with subprocess.Popen([*COMMAND, "cancel", run], stdout=subprocess.PIPE, text=True) as cancel:
        wait_for(signal.SIGUSR2, processes)
        thaw(processes)
        assert cancel.communicate()[0].endswith("cancelled\n")
    row = told(run)
    assert row["state"] == "cancelled"
    assert row["checkpoint"] == row["step"] < STEPS
    assert launched("resume", run) != job
    assert until(run, "done")["restarts"] == 1
    assert_same_run(straight, run)


def test_a_job_that_waits_takes_changes(asked: list[str], tmp_path: Path) -> None:
    """The change is in what starts later, and not a second job."""
    run = tmp_path / "run"
    first = subprocess.check_output(["sbatch", "--parsable", "--hold", "--output=/dev/null", "--wrap=true"], text=True)
    job = launched(*asked, "--dependency", f"afterany:{first.strip()}", "--out", run)
    assert until(run, "queued")["job"] == job
    assert launched("resume", run, "--change", "optimizer.lr=0.5", "--change", "train.images=16") == job
    assert told(run)["state"] == "queued"
    subprocess.run(["scancel", first.strip()], check=True)
    assert until(run, "done")["step"] == 2
    assert settings.load(run / "config.yaml").optimizer.lr == 0.5


def test_a_dead_node_leaves_the_run_to_the_other(
    slurm_cluster: Path, straight: Path, asked: list[str], tmp_path: Path
) -> None:
    """slurmd and all that it started on a node are killed, as by a power cut."""
    run = tmp_path / "run"
    idle = ["sinfo", "--noheader", "--partition=main", "--format=%D %T"]
    while subprocess.check_output(idle, text=True) != "2 idle\n":  # or else it begins on the one that is free
        time.sleep(0.2)
    launched(*asked, "--out", run, "--min-nodes", 1)
    until(run, "running", steps=1)
    processes = frozen(run)
    for process in [int((slurm_cluster / "slurmd-n2.pid").read_text()), *keepers("n2"), processes[1]]:
        os.kill(process, signal.SIGKILL)
    thaw(processes[:1])
    try:
        row = until(run, "done")
    finally:
        scripts = Path(__file__).resolve().parents[2] / "slurm" / "local-cluster"
        subprocess.run([scripts / "start.sh", slurm_cluster], check=True)
    assert (row["world"], row["step"]) == (1, STEPS)
    assert row["restarts"] >= 1
    resumed = next(event["step"] for event in read_events(run) if event["event"] == "resume" and event["world"] == 1)
    alone, undisturbed = read_metrics(run), read_metrics(straight)
    assert [row["step"] for row in alone] == [row["step"] for row in undisturbed]
    assert [row["loss"] for row in alone[:resumed]] == [row["loss"] for row in undisturbed[:resumed]]
    assert alone[resumed]["loss"] == pytest.approx(undisturbed[resumed]["loss"], abs=1e-3)  # sums in another order


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is the device that the setting asks for")
def test_a_wrong_setting_is_not_tried_again(asked: list[str], tmp_path: Path) -> None:
    run = tmp_path / "run"
    launched(*asked, "train.device=cuda", "--out", run)  # which only the nodes can tell
    deadline = time.monotonic() + 120
    while told(run)["state"] != "failed":
        assert time.monotonic() < deadline, told(run)
        time.sleep(0.1)
    assert "no CUDA device" in told(run)["why"]
    assert "requeued" not in printed(run)


def limit(job: str, minutes: int) -> None:
    subprocess.run(["scontrol", "update", f"JobId={job}", f"TimeLimit={minutes}"], check=True)


def elapsed(job: str) -> int:
    """Seconds that a job has run for."""
    parts = subprocess.check_output(["squeue", "--noheader", "--format=%M", f"--jobs={job}"], text=True).split(":")
    return sum(int(part) * 60**place for place, part in enumerate(reversed(parts)))


def wait_for(number: int, processes: list[int]) -> None:
    """Until a signal has come to all of the processes, which stand still."""
    deadline = time.monotonic() + 200
    while not all(pending(process, number) for process in processes):
        assert time.monotonic() < deadline
        time.sleep(0.1)


def pending(process: int, number: int) -> bool:
    """Whether a signal waits for a process that stands still, or has ended it."""
    try:
        lines = Path(f"/proc/{process}/status").read_text().splitlines()
    except OSError:
        return True
    masks = [int(line.split()[1], 16) for line in lines if line.startswith(("SigPnd", "ShdPnd"))]
    return any(mask >> (number - 1) & 1 for mask in masks)


def keepers(node: str) -> list[int]:
    """The processes that keep a node's job steps (slurmstepd)."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            name = (path / "comm").read_text().strip()
            files = [str(file.readlink()) for file in (path / "fd").iterdir()] if name == "slurmstepd" else []
        except OSError:
            continue
        if any(f"spool-{node}" in file or f"slurmd-{node}" in file for file in files):
            found.append(int(path.name))
    return found
