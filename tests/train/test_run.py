"""Whole runs: exact under kill and resume, the same on any number of ranks, clear about what is wrong."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml

from seer_pipe import config as settings
from seer_pipe.errors import UserError
from seer_pipe.store import open_store
from seer_pipe.train.checkpoint import Checkpoints
from seer_pipe.train.events import read_events
from seer_pipe.train.loop import train
from seer_pipe.train.telemetry import read_metrics
from tests.distributed import run_ranks
from tests.train.helpers import make_pictures, small


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), [13, 0, 1, 20])


@pytest.fixture(scope="module")
def straight(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    run = tmp_path_factory.mktemp("straight") / "run"
    assert train(small(pictures), run, say=lambda _: None)
    return run


def weights(run: Path) -> dict[str, torch.Tensor]:
    checkpoints = Checkpoints(open_store(run / "checkpoints"))
    newest = checkpoints.open(checkpoints.steps()[-1])
    return {
        f"{part}/{name}": tensor
        for part in ("network", "optimizer", "objective")
        for name, tensor in newest.whole(part).items()
    }


def assert_same_weights(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def losses(run: Path) -> dict[int, float]:
    rows = read_metrics(run)
    assert len({row["step"] for row in rows}) == len(rows)
    return {int(row["step"]): row["loss"] for row in rows}


def test_a_run_leaves_what_it_should(straight: Path) -> None:
    kept = sorted(folder.name for folder in (straight / "checkpoints").iterdir())
    assert kept == ["step-00000006", "step-00000009", "step-00000012"]
    assert list(losses(straight)) == list(range(1, 13))
    resolved = yaml.safe_load((straight / "config.yaml").read_text())
    assert resolved["derived"]["steps"] == 12
    assert resolved["derived"]["peak_lr"] == pytest.approx(1.0 * 8 / 256)
    assert pq.read_table(straight / "quarantine.parquet").num_rows == 0
    assert any((straight / "tensorboard").iterdir())
    told = [(event["event"], event["step"]) for event in read_events(straight)]
    assert told == [("start", 0), *[("checkpoint", step) for step in (0, 3, 6, 9, 12)], ("done", 12)]


def test_killed_at_random_and_resumed_gives_the_same_weights(straight: Path, pictures: Path, tmp_path: Path) -> None:
    """kill -9 at any moment: bit for bit the weights of the run that was never stopped."""
    config = small(pictures)
    settings.save(config, settings.derive(config, 34), tmp_path / "recipe.yaml")
    run, kills = tmp_path / "run", 0
    command = [sys.executable, "-m", "seer_pipe", "train", str(tmp_path / "recipe.yaml"), "--out", str(run)]
    dice = random.Random(0)
    while True:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
            assert process.stdout is not None
            lines, patience = [], dice.randint(1, 6) if kills < 3 else None
            for line in process.stdout:
                lines.append(line)
                if patience is not None and sum(text.startswith("step ") for text in lines) == patience:
                    time.sleep(dice.uniform(0, 0.2))
                    os.kill(process.pid, signal.SIGKILL)
                    kills += 1
                    break
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, "".join(lines)
    assert kills >= 2
    assert_same_weights(straight, run)
    assert losses(run) == losses(straight)


def test_sigterm_commits_and_the_same_command_goes_on(straight: Path, pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def stop_after_five(line: str) -> None:
        if line.startswith("step 5/"):
            os.kill(os.getpid(), signal.SIGTERM)

    assert not train(small(pictures), run, say=stop_after_five)
    stopped = read_events(run)[-1]
    assert (stopped["event"], stopped["reason"]) == ("stop", "SIGTERM")
    assert 6 <= stopped["step"] <= 7  # asked before step 6, and agreed on a step later
    assert (run / f"checkpoints/step-{stopped['step']:08d}/COMMITTED.json").exists()
    assert train(small(pictures), run, say=lambda _: None)
    assert_same_weights(straight, run)
    assert losses(run) == losses(straight)


def run_as_rank(data: str, run: str, parallel: str, model: str = "regnety_200mf") -> bool:
    config = small(Path(data), train={"parallel": parallel}, model={"name": model})
    return train(config, Path(run), say=lambda _: None)


def test_two_ranks_equal_one(pictures: Path, tmp_path: Path) -> None:
    """Sums in another order differ in the last bits, which every step enlarges a little; in a ResNet but a little."""
    straight = tmp_path / "straight"
    assert train(small(pictures, model={"name": "resnet18"}), straight, say=lambda _: None)
    runs = {parallel: tmp_path / parallel for parallel in ("ddp", "fsdp2")}
    for parallel, run in runs.items():
        assert run_ranks(2, run_as_rank, str(pictures), str(run), parallel, "resnet18") == [True, True]
    alone, ddp, fsdp2 = losses(straight), losses(runs["ddp"]), losses(runs["fsdp2"])
    assert alone.keys() == ddp.keys() == fsdp2.keys()
    assert all(abs(alone[step] - ddp[step]) < 1e-5 for step in (1, 2))
    assert all(abs(alone[step] - ddp[step]) < 5e-3 for step in alone)
    assert all(abs(fsdp2[step] - ddp[step]) < 1e-3 for step in alone)
    assert weights(straight).keys() == weights(runs["ddp"]).keys() == weights(runs["fsdp2"]).keys()


def test_a_run_moves_between_numbers_of_ranks(straight: Path, pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"

    def stop_after_five(line: str) -> None:
        if line.startswith("step 5/"):
            os.kill(os.getpid(), signal.SIGTERM)

    assert not train(small(pictures), run, say=stop_after_five)
    assert run_ranks(2, run_as_rank, str(pictures), str(run), "fsdp2") == [True, True]
    alone, moved = losses(straight), losses(run)
    assert alone.keys() == moved.keys()
    assert all(alone[step] == moved[step] for step in range(1, 7))
    assert all(abs(alone[step] - moved[step]) < 1e-2 for step in alone)


def test_activation_checkpointing_changes_nothing(straight: Path, pictures: Path, tmp_path: Path) -> None:
    config = small(pictures, train={"activation_checkpointing": True})
    assert train(config, tmp_path / "run", say=lambda _: None)
    assert_same_weights(straight, tmp_path / "run")


def test_a_damaged_checkpoint_is_passed_over(straight: Path, pictures: Path, tmp_path: Path) -> None:
    run, said = tmp_path / "run", []
    train(small(pictures), run, say=lambda _: None)
    for step, damage in ((12, "truncate"), (9, "flip")):
        file = run / f"checkpoints/step-{step:08d}/00000-0000.safetensors"
        data = bytearray(file.read_bytes())
        if damage == "flip":
            data[len(data) // 2] ^= 1
        file.write_bytes(data if damage == "flip" else data[:1000])
    assert train(small(pictures), run, say=said.append)
    assert sum("is damaged" in line for line in said) == 2
    assert any(line.startswith("resumed: 6 of 12") for line in said)
    assert_same_weights(straight, run)


def test_uncommitted_files_do_not_exist(straight: Path, pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    left = run / "checkpoints/step-00000007"
    left.mkdir(parents=True)
    (left / "network.safetensors").write_bytes(b"half of it")
    assert train(small(pictures), run, say=lambda _: None)
    assert not (left / "network.safetensors").exists()
    assert_same_weights(straight, run)


def test_bad_images_are_replaced_and_told(pictures: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    make_pictures(data, [13, 0, 1, 20])
    rows = pq.read_table(data / "00003.parquet").to_pylist()
    with (data / "00003.tar").open("r+b") as tar:
        for row in rows[:2]:
            tar.seek(row["offset"] + row["length"] // 2)
            tar.write(b"damage")
    config = small(data, data={"max_bad_fraction": 0.5})
    assert train(config, tmp_path / "run", say=lambda _: None)
    told = pq.read_table(tmp_path / "run/quarantine.parquet").to_pylist()
    assert {(row["shard"], row["index"]) for row in told} == {("00003.tar", 0), ("00003.tar", 1)}
    assert all("checksum" in row["reason"] for row in told)
    assert train(config, tmp_path / "again", say=lambda _: None)
    assert_same_weights(tmp_path / "run", tmp_path / "again")


def test_too_many_bad_images_stop_the_run(tmp_path: Path) -> None:
    data = make_pictures(tmp_path / "data", [16, 16])
    with (data / "00001.tar").open("r+b") as tar:
        tar.write(bytes(1 << 20))
    config = small(data, data={"max_bad_fraction": 0.001})
    with pytest.raises(UserError, match=r"max_bad_fraction.*00001\.tar"):
        train(config, tmp_path / "run", say=lambda _: None)


def test_what_contradicts_a_run_is_refused(straight: Path, pictures: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"optimizer\.momentum \(0\.9 in the run, 0\.8 now\)"):
        train(small(pictures, optimizer={"momentum": 0.8}), straight, say=lambda _: None)
    other = make_pictures(tmp_path / "other", [14, 0, 1, 20])
    with pytest.raises(UserError, match="another shards"):
        train(small(other), straight, say=lambda _: None)


def test_a_second_start_is_refused(pictures: Path, tmp_path: Path) -> None:
    seen = []

    def start_again(line: str) -> None:
        if line.startswith("step 1/"):
            with pytest.raises(UserError, match="already going on"):
                train(small(pictures), tmp_path / "run", say=lambda _: None)
            seen.append(line)
            os.kill(os.getpid(), signal.SIGTERM)

    train(small(pictures), tmp_path / "run", say=start_again)
    assert seen


def test_metrics_survive_a_cut_line(straight: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
