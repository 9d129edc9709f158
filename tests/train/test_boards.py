"""What a run tells to Weights & Biases and MLflow, read back from their own files: every step once, through a crash."""

import struct
import time
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest

from seer_pipe.errors import UserError
from seer_pipe.train import boards
from seer_pipe.train.loop import train
from seer_pipe.train.telemetry import Metrics, read_metrics
from tests.train.helpers import make_pictures, small

Told = list[tuple[int, float]]  # step and loss


def wandb_has(run: Path) -> Told:
    """All that its offline files hold, one after the other, as `wandb sync --append` sends it.

    The files are logs as LevelDB's: after 7 bytes of their own, records of checksum, length, kind (1: whole) and data.
    """
    record = import_module("wandb.proto.wandb_internal_pb2").Record
    found = []
    for file in sorted(run.glob("wandb/offline-run-*/run-*.wandb")):
        data, at = file.read_bytes(), 7
        while at + 7 <= len(data):
            _, length, kind = struct.unpack_from("<IHB", data, at)
            assert kind == 1
            if at + 7 + length > len(data):
                break  # is being written
            entry = record.FromString(data[at + 7 : at + 7 + length])
            if entry.WhichOneof("record_type") == "history":
                row = {item.key or item.nested_key[0]: item.value_json for item in entry.history.item}
                found.append((int(row["_step"]), float(row["loss"])))
            at += 7 + length
    return found


def mlflow_has(run: Path) -> Told:
    client: Any = import_module("mlflow.tracking").MlflowClient(tracking_uri=f"sqlite:///{run / 'mlflow.db'}")
    (one,) = client.search_runs([client.get_experiment_by_name("seer_pipe").experiment_id])
    return [(metric.step, metric.value) for metric in client.get_metric_history(one.info.run_id, "loss")]


HAS = {"wandb": wandb_has, "mlflow": mlflow_has}


def assert_has(board: str, run: Path, rows: list[tuple[Any, Any]]) -> None:
    """At once or in a while: what is told last may still be written by the board's own process."""
    deadline = time.monotonic() + 60
    while (found := HAS[board](run)) != rows and time.monotonic() < deadline:
        time.sleep(0.1)
    assert found == rows


@pytest.fixture(params=HAS)
def board(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    name: str = request.param
    pytest.importorskip(name, reason=f"no {name} here: pip install '.[{name}]'")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return name


@pytest.mark.slow
def test_every_step_once_through_crash_and_rollback(board: str, tmp_path: Path) -> None:
    config = small(tmp_path, train={"log_to": [board]})

    def write(metrics: Metrics, *steps: int) -> None:
        for step in steps:
            metrics.write(step, {"loss": float(step), "images": 8.0 * step, "grad_norm": float("nan")})

    metrics = Metrics(tmp_path, 0, config)
    write(metrics, 1, 2, 3, 4, 5)
    metrics.close()
    metrics = Metrics(tmp_path, 3, config)  # resumed from the checkpoint of step 3
    write(metrics, 4, 5, 6, 7)
    metrics.rewind(5)
    write(metrics, 6, 7, 8)
    metrics.close()
    assert_has(board, tmp_path, [(step, float(step)) for step in range(1, 9)])
    assert [row["step"] for row in read_metrics(tmp_path)] == list(range(1, 9))


@pytest.mark.slow
def test_a_run_that_begins_to_tell_later_tells_all(board: str, tmp_path: Path) -> None:
    pictures, run = make_pictures(tmp_path / "pictures", [40]), tmp_path / "run"

    def crash(line: str) -> None:
        if line.startswith("step 3/"):
            raise RuntimeError("crash")

    with pytest.raises(RuntimeError, match="crash"):
        train(small(pictures, train={"images": 32, "checkpoint_every": 2}), run, crash)
    later = small(pictures, train={"images": 32, "checkpoint_every": 2, "log_to": ["tensorboard", board]})
    assert train(later, run, lambda _: None)
    assert_has(board, run, [(row["step"], pytest.approx(row["loss"])) for row in read_metrics(run)])
    assert len(read_metrics(run)) == 4


def test_a_board_that_is_not_installed_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(boards.Wandb, "package", "no_such_package")
    config = small(make_pictures(tmp_path / "pictures", [40]), train={"log_to": ["wandb"]})
    with pytest.raises(UserError, match=r"wandb is not installed: pip install 'seer-pipe\[wandb\]'"):
        train(config, tmp_path / "run", lambda _: None)
    assert not (tmp_path / "run/config.yaml").exists()


def test_tensorboards_files_are_read_in_the_order_in_which_they_were_written(tmp_path: Path) -> None:
    """Which is by name: the second, the host, the process. Within a second there was no order."""
    for _ in range(2):
        boards.TensorBoard(boards.Opening(tmp_path, small("unused"), 0, 0)).close()
    seconds = [int(file.name.split(".")[3]) for file in tmp_path.glob("tensorboard/*")]
    assert len(set(seconds)) == 2
