"""What comes after a start, what a job asks for, and what is refused: none of it needs a cluster."""

import time
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from seer_pipe import config as settings
from seer_pipe.cli import app
from seer_pipe.errors import UserError
from seer_pipe.launch import record, submit
from seer_pipe.launch.after import decide, describe
from seer_pipe.launch.cluster import Cluster, load, minutes
from seer_pipe.launch.record import Outcome, Record
from seer_pipe.launch.status import find_runs, status
from seer_pipe.store import FolderStore
from tests.train.helpers import make_pictures, small

START = "7.0"
STOPPED = "stopped, the checkpoint of step 0 is committed"


def begun(run: Path, **changes: Any) -> Path:
    (run / "jobs").mkdir(parents=True)
    given: dict[str, Any] = {"where": "local", "job": "1", "host": "elsewhere", "time": time.time(), "config": {},
                             "folder": str(run / "jobs"), "cluster": {"max_crashes": 2, "backoff_s": 10},
                             "on_purpose": []}  # fmt: skip
    record.write(run, Record(**given | changes))
    return run


@pytest.mark.parametrize(
    ("ends", "what", "why"),
    [
        ([(0, "done", ""), (1, "done", "")], "done", ""),
        ([(1, "done", ""), (0, "stopped", "")], "again", STOPPED),
        ([(1, "stopped", ""), (0, "crashed", "peer gone")], "again", STOPPED),
        ([(0, "stopped", "SIGTERM")], "again", "crash 1 of at most 2 in a row: a task was killed (exit code 137)"),
        ([(0, "crashed", "peer gone"), (3, "failed", "no CUDA device")], "failed", "no CUDA device"),
        ([(1, "crashed", "no memory"), (0, "stopped", "")], "again", "crash 1 of at most 2 in a row: no memory"),
        ([], "again", "crash 1 of at most 2 in a row: a task was killed (exit code 137)"),
    ],
)
def test_what_comes_after_a_start(tmp_path: Path, ends: list[tuple[int, Any, str]], what: str, why: str) -> None:
    run = begun(tmp_path / "run")
    for place, (rank, ending, told) in enumerate(ends):
        record.end(run, START, rank, ending, told, time=float(place))
    outcome = decide(run, START, 137)
    assert (outcome.what, outcome.why) == (what, why)


def test_crashes_wait_longer_each_time_and_end_unless_there_is_progress(tmp_path: Path) -> None:
    run = begun(tmp_path / "run")
    delays = []
    for _ in range(2):
        outcome = decide(run, START, 1)
        record.write_outcome(run, outcome)
        delays.append(round(outcome.at - outcome.time))
    assert delays == [10, 20]
    assert describe(outcome).startswith("requeued in 20 s: crash 2 of at most 2")
    assert decide(run, START, 1).what == "failed"
    (run / "checkpoints" / "step-00000005").mkdir(parents=True)
    (run / "checkpoints" / "step-00000005" / "COMMITTED.json").write_text("{}")
    assert decide(run, START, 1).crashes == 1


def test_a_cancelled_run_is_not_begun_again(tmp_path: Path) -> None:
    run = begun(tmp_path / "run", cancelled=True)
    record.end(run, START, 0, "stopped", "SIGUSR2", time=0.0)
    assert decide(run, START, 0).what == "cancelled"


def test_a_run_whose_processes_are_gone_has_died(tmp_path: Path) -> None:
    run = begun(tmp_path / "runs" / "one")
    (row,) = status(find_runs(tmp_path / "runs"))
    assert (row["run"], row["state"]) == (str(run), "died")
    record.write_outcome(run, Outcome("failed", "no such data", time.time(), 0.0))
    assert status([run])[0]["why"] == "no such data"


@pytest.mark.parametrize(("text", "expected"), [("3d", 4320), ("12h", 720), ("90m", 90), ("1d12h", 2160)])
def test_times(text: str, expected: int) -> None:
    assert minutes(text) == expected


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"time": "soon"}, "time 'soon': write 3d"),
        ({"nodes": 1, "min_nodes": 2}, "min_nodes is more than nodes"),
        ({"nodes": 5, "min_nodes": 2, "tasks_per_node": 2}, "on 4 nodes at most"),
        ({"node": 8}, r"cluster: node: no such setting; did you mean nodes\?"),
        ({"mem": 400}, "mem: input should be a valid string"),
    ],
)
def test_what_a_cluster_cannot_be_asked(changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        load(None, changes)


def test_the_example_asks_for_what_it_says(tmp_path: Path) -> None:
    cluster = load("slurm/clusters/example.yaml", {"time": "1d", "partition": None})
    text = submit.batch_script([tmp_path / "run"], tmp_path / "run" / "jobs", cluster)
    for line in ("--partition=gpu", "--nodes=2-4", "--ntasks-per-node=8", "--gpus-per-node=8", "--time=1440",
                 "--requeue", "--signal=USR2@180", "--open-mode=append"):  # fmt: skip
        assert f"#SBATCH {line}\n" in text
    assert "export NCCL_SOCKET_IFNAME=ib0\n" in text
    assert "--kill-on-bad-exit=1 --ntasks-per-node=8 --cpus-per-task=12 " in text
    assert text.rstrip().splitlines()[-2:][0] == "code=$?"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), [34])


@pytest.mark.parametrize(
    ("changes", "asked", "told"),
    [
        ({}, {"nodes": 4, "min_nodes": 2}, "does not divide over 3 nodes"),
        ({"data": {"path": "/nowhere"}}, {}, "/nowhere: no shard set here"),
        ({"train": {"batch": 64}, "objective": {"queue": 0}}, {}, "fewer than a batch of 64"),
        ({"train": {"images": 4}}, {}, "less than one batch of 8"),
        ({"model": {"name": "resnet17"}}, {}, "resnet17.*try resnet18"),
        ({}, {"tasks_per_node": 8}, "8 ranks leave one image each"),
        ({"train": {"accumulate": 4}}, {"tasks_per_node": 2}, "train.accumulate 4: must cut a rank's 4 images"),
        ({"train": {"parallel": "none"}}, {"tasks_per_node": 2}, "2 processes need ddp or fsdp2"),
        ({"train": {"parallel": "ddp"}}, {}, "one process alone"),
        ({"train": {"parallel": "fairscale"}}, {}, "fairscale: one process alone"),
        ({"probe": {"path": "/nowhere", "every_images": 8}}, {}, "/nowhere"),
    ],
)
def test_what_cannot_run_is_refused_before_it_is_submitted(
    changes: dict[str, Any], asked: dict[str, Any], told: str, pictures: Path, tmp_path: Path
) -> None:
    submit.check(small(pictures), tmp_path / "run", Cluster(nodes=4, min_nodes=4))
    with pytest.raises(UserError, match=told):
        submit.check(small(pictures, **changes), tmp_path / "run", Cluster(**asked))
    assert not (tmp_path / "run").exists()


def test_a_dry_run_refuses_as_much(pictures: Path, tmp_path: Path) -> None:
    config = small(pictures)
    settings.save(config, settings.derive(config, 34), tmp_path / "recipe.yaml")
    words = ["launch", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "run"), "--dry-run"]
    script = CliRunner().invoke(app, words, catch_exceptions=False).stdout
    assert "#SBATCH --nodes=1\n" in script
    assert "wckey" not in script
    with pytest.raises(UserError, match="no shard set here"):
        CliRunner().invoke(app, [*words, f"data.path={tmp_path}"], catch_exceptions=False)


def test_another_folder_than_the_run_s_settings_want(pictures: Path, tmp_path: Path) -> None:
    config, run = small(pictures), tmp_path / "run"
    with pytest.raises(UserError, match="one node"):
        submit.place(Cluster(nodes=2, cluster="local"))
    run.mkdir()
    settings.save(config, settings.derive(config, 34), run / "config.yaml")
    FolderStore(run).put("checkpoints/step-00000001/COMMITTED.json", b"{}")  # before a step all may be corrected
    other = small(pictures, optimizer={"lr": 2.0})
    with pytest.raises(UserError, match=r"begun with other settings: optimizer\.lr.*--change optimizer\.lr=2\.0"):
        submit.check(other, run, Cluster())
    submit.check(other, run, Cluster(), on_purpose=["optimizer.lr"])
    with pytest.raises(UserError, match="cannot change within a run: seed"):
        submit.check(other.model_copy(update={"seed": 3}), run, Cluster(), on_purpose=["optimizer.lr", "seed"])
    settings.save(other, settings.derive(other, 34), run / "recipe.yaml")
    words = ["launch", str(run / "recipe.yaml"), "--out", str(run), "--dry-run", "--change", "optimizer.lr=3.0"]
    assert CliRunner().invoke(app, words, catch_exceptions=False).stdout.startswith("#!")


def test_status_fits_a_narrow_terminal_and_breaks_no_name(tmp_path: Path) -> None:
    run = begun(tmp_path / "optimizer.lr=0.3,objective.temperature=0.1,seed=1", job="123_4")
    record.write_outcome(run, Outcome("failed", "no such data: " + "x" * 90, now := time.time(), 0.0))
    told = CliRunner().invoke(app, ["status", str(tmp_path)], env={"COLUMNS": "80"}, catch_exceptions=False).stdout
    head, line, more = told.splitlines()
    assert head.split() == ["run", "state", "step", "images/s", "loss", "left"]
    assert line.split()[:2] == [run.name, "failed"]
    since = f"{datetime.fromtimestamp(now):%Y-%m-%d %H:%M}"
    assert more == f"  job 123_4; failed since {since}; no such data: {'x' * 90}"
    assert CliRunner().invoke(app, ["status", str(tmp_path / "nothing")]).stdout == "no runs here\n"


def test_a_sweep_is_every_combination() -> None:
    assert submit.combinations(["a.b=1,2", "c=x"]) == [("a.b=1", "c=x"), ("a.b=2", "c=x")]
    assert submit.combinations([]) == [()]
    lists = submit.combinations(["c=[{a: [1, 2]}, {b: 3}],[1],null"])
    assert lists == [("c=[{a: [1, 2]}, {b: 3}]",), ("c=[1]",), ("c=null",)]
    with pytest.raises(UserError, match="write key"):
        submit.combinations(["a.b"])


def test_a_sweep_goes_over_recipes_and_settings(tmp_path: Path) -> None:
    recipes = [Path("quickstart"), Path("imagenette_cpu")]
    found = submit.sweep(recipes, ["seed=0,1", "data.path=a/b"], tmp_path)
    assert [(config.name, config.seed, run.name) for config, run in found] == [
        (name, seed, f"{name},seed={seed},data.path=a_b")
        for name in ("quickstart", "imagenette_cpu")
        for seed in (0, 1)
    ]
    assert [run.name for _, run in submit.sweep(recipes, [], tmp_path)] == ["quickstart", "imagenette_cpu"]
    assert [run.name for _, run in submit.sweep(recipes[:1], ["seed=0,1"], tmp_path)] == ["seed=0", "seed=1"]
    with pytest.raises(UserError, match="two of the recipes have the name quickstart"):
        submit.sweep([Path("quickstart"), Path("configs/quickstart.yaml")], [], tmp_path)


def test_a_snapshot_is_a_copy_of_the_code(tmp_path: Path) -> None:
    code = submit.snapshot(tmp_path)
    own = Path(submit.__file__)
    assert (code / "seer_pipe" / "launch" / "submit.py").read_bytes() == own.read_bytes()
