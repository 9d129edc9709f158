"""Work spread over jobs: the same set as one process makes, also after a job was killed."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from ingest.job_array import parsed
from seer_pipe.errors import UserError
from tests.ingest.helpers import COMMAND, files, seer_ingest, stored
from tests.ingest.test_run import fill
from tests.ingest.web import Web


def made(root: Path) -> dict[str, bytes]:
    return {name: data for name, data in files(root).items() if not name.startswith("jobs/")}


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--shuffle"]])
def test_jobs_make_what_one_process_makes(tmp_path: Path, server: Web, options: list[str]) -> None:
    (tmp_path / "list.txt").write_text("".join(server.url(f"/jpeg/{number % 25}\n") for number in range(30)))
    for out, arguments in (("one", []), ("many", ["--slurm", "--tasks", 3])):
        run = seer_ingest(
            "urls", tmp_path / "list.txt", "--out", tmp_path / out, "--unit", 6, "--allow-network", "127.0.0.0/8",
            "--workers", 1, *options, *arguments,
        )  # fmt: skip
        assert run.returncode == 0, run.stderr
    assert made(tmp_path / "many") == made(tmp_path / "one")
    in_order = [row["source"] for row in stored(tmp_path / "one")] == [server.url(f"/jpeg/{n}") for n in range(25)]
    assert in_order == (not options)
    assert len(list((tmp_path / "many" / "jobs").glob("*submitted.pkl"))) == 3


@pytest.mark.slow
def test_a_killed_job_is_told_and_its_units_are_done_next_time(tmp_path: Path, server: Web) -> None:
    (tmp_path / "list.txt").write_text(server.url("/jpeg/1\n") + server.url("/silent\n"))
    listed, out = tmp_path / "list.txt", tmp_path / "out"
    arguments = ["urls", listed, "--out", out, "--unit", 1, "--allow-network", "127.0.0.0/8"]
    command = [*COMMAND, *map(str, [*arguments, "--slurm", "--tasks", 2])]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 60
        while not (tmp_path / "out" / "00000.parquet").exists() or not (jobs := unfinished(tmp_path / "out" / "jobs")):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        for job in jobs:
            os.kill(job, signal.SIGKILL)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 1
    assert said.splitlines()[-1].startswith("error: 1 of 2 units are not done")
    run = seer_ingest(*arguments, "--read-timeout", 0.5, "--tries", 1)
    assert run.returncode == 0, run.stderr
    assert "1 images in 2 shards" in run.stdout


@pytest.mark.slurm
def test_an_array_on_slurm_outlives_a_killed_task(slurm_cluster: Path, tmp_path: Path, server: Web) -> None:
    """Four tasks over two nodes, one killed by SIGKILL: it is queued again, and the set is the one process's."""
    (tmp_path / "list.txt").write_text("".join(server.url(f"/jpeg/{number % 25}\n") for number in range(48)))
    common = ["urls", tmp_path / "list.txt", "--unit", 3, "--allow-network", "127.0.0.0/8", "--workers", 1]
    one, many = tmp_path / "one", tmp_path / "many"
    assert seer_ingest(*common, "--out", one).returncode == 0
    parameters = "cpus_per_task=8,timeout_min=5"  # two tasks fill a node
    command = [*COMMAND, *map(str, [*common, "--out", many, "--slurm", "--tasks", 4]), "--slurm-parameters", parameters]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        victim, nodes = None, set()
        while victim is None:
            assert process.poll() is None
            said = subprocess.check_output(["squeue", "--noheader", "--array", "--format=%i %T %N"], text=True)
            running = [line.split() for line in said.splitlines() if " RUNNING " in line]
            nodes |= {node for _, _, node in running}
            if len(running) == 4:
                victim = task_process(running[2][0])
            time.sleep(0.1)
        os.kill(victim, signal.SIGKILL)
        _, told = process.communicate(timeout=120)
    assert process.returncode == 0, told
    assert nodes == {"n1", "n2"}
    told = subprocess.check_output(["scontrol", "show", "job", running[2][0]], text=True)
    assert "Restarts=1" in told
    assert made(many) == made(one)


def task_process(job: str) -> int | None:
    """The Python process of a job's only task."""
    array, task = job.split("_")
    for process in Path("/proc").glob("[0-9]*"):
        try:
            environment, command = (process / "environ").read_bytes(), (process / "cmdline").read_bytes()
        except OSError:
            continue
        names = {f"SLURM_ARRAY_JOB_ID={array}".encode(), f"SLURM_ARRAY_TASK_ID={task}".encode()}
        if b"submitit.core._submit" in command and b"srun" not in command and names <= set(environment.split(b"\0")):
            return int(process.name)
    return None


def unfinished(jobs: Path) -> list[int]:
    """The processes of jobs that have no result yet. A local job's name is the process that looks after it."""
    finished = {path.name.split("_")[0] for path in jobs.glob("*_result.pkl")}
    keepers = {path.name.split("_")[0] for path in jobs.glob("*_submitted.pkl")} - finished
    children = (Path(f"/proc/{keeper}/task/{keeper}/children") for keeper in keepers)
    return [int(pid) for path in children if path.exists() for pid in path.read_text().split()]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", {}),
        ("timeout_min=60, partition=cpu", {"timeout_min": 60, "slurm_partition": "cpu"}),
        ("cpus_per_task=16,qos=low", {"cpus_per_task": 16, "slurm_qos": "low"}),
    ],
)
def test_parameters(text: str, expected: dict[str, object]) -> None:
    assert parsed(text) == expected


def test_parameters_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="write name=value"):
        parsed("partition")
    arguments = ["folder", fill(tmp_path / "in", 1), "--out", tmp_path / "out", "--slurm", "--slurm-parameters"]
    run = seer_ingest(*arguments, "bogus=1")
    assert run.returncode == 2
    assert run.stderr.startswith("error: slurm_parameters: ")
    assert run.stderr.count("\n") == 1
