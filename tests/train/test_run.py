"""Whole runs: what they leave, what they pass over, clear about what is wrong."""

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml

from seer_pipe.data.views import VIEWS_VERSION
from seer_pipe.errors import UserError
from seer_pipe.train.checkpoint import Checkpoints
from seer_pipe.train.committed import store_of
from seer_pipe.train.events import read_events
from seer_pipe.train.loop import train
from seer_pipe.train.telemetry import read_metrics
from tests.train.helpers import assert_same_weights, losses, make_pictures, small, spoil_pictures


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), [13, 0, 1, 20])


@pytest.fixture(scope="module")
def straight(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nothing interrupts."""
    run = tmp_path_factory.mktemp("straight") / "run"
    assert train(small(pictures), run, say=lambda _: None)
    return run


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_bad_images_are_replaced_and_told(pictures: Path, tmp_path: Path) -> None:
    data = make_pictures(tmp_path / "data", [13, 0, 1, 20])
    spoil_pictures(data, 2)
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
    with pytest.raises(UserError, match="another shard set"):
        train(small(other), straight, say=lambda _: None)


def test_a_run_that_would_see_other_crops_is_refused(
    straight: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The version of the views stands in the checkpoint, as that of the order does."""
    store = store_of(straight)
    assert all(
        Checkpoints(store).open(step).state["views"] == str(VIEWS_VERSION) for step in Checkpoints(store).steps()
    )
    monkeypatch.setattr("seer_pipe.train.loop.VIEWS_VERSION", VIEWS_VERSION + 1)
    with pytest.raises(UserError, match=rf"another version of the views \({VIEWS_VERSION}, now {VIEWS_VERSION + 1}\)"):
        train(small(pictures), straight, say=lambda _: None)


def test_metrics_survive_a_cut_line(straight: Path, tmp_path: Path) -> None:
    (tmp_path / "metrics.jsonl").write_text(json.dumps({"step": 1, "loss": 2.0}) + '\n{"step": 2, "lo')
    assert read_metrics(tmp_path) == [{"step": 1, "loss": 2.0}]
