"""How a run begins and when it is asked to end: anew, from given weights, by a signal, by the allocation's end."""

import fcntl
import importlib
import os
import re
import signal
import time
from itertools import chain, repeat
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from seer_pipe import config as settings
from seer_pipe.distributed.world import World
from seer_pipe.errors import UserError
from seer_pipe.evaluate.probe import KnnProbe
from seer_pipe.evaluate.subject import load_run
from seer_pipe.models import Trunk, build_trunk
from seer_pipe.run import start
from seer_pipe.store import open_store
from seer_pipe.train import signals
from seer_pipe.train.checkpoint import Checkpoints
from seer_pipe.train.committed import MARKER
from seer_pipe.train.events import read_events
from seer_pipe.train.folder import LOCK, only_start
from seer_pipe.train.loop import train
from seer_pipe.train.signals import SIGNALS, StopRequest, deadline
from seer_pipe.train.telemetry import read_metrics
from seer_pipe.train.trainer import Hooks
from tests.train.helpers import make_pictures, small


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), [13, 0, 1, 20])


@pytest.mark.slow
def test_first_weights_fresh_starts_and_the_probe(pictures: Path, tmp_path: Path) -> None:
    """A run of two steps from given weights, measured at its end, and begun anew without losing it."""
    run = tmp_path / "run"

    def ones(trunk: Trunk) -> None:
        torch.nn.init.ones_(trunk.stem[0].weight)

    config = small(pictures, train={"images": 16}, probe={"path": str(pictures), "every_images": 16})
    assert config.probe is not None
    hooks = Hooks(initialise=ones, probe=KnnProbe(config.probe, size=24))
    assert train(config, run, say=lambda _: None, hooks=hooks)
    checkpoints = Checkpoints(open_store(run / "checkpoints"))
    assert checkpoints.open(0).whole("network")["trunk.stem.0.weight"].eq(1).all()
    (row,) = [row for row in read_metrics(run) if "knn" in row]
    assert row["step"] == 2
    assert 0 <= row["knn"] <= 1  # little after two steps
    assert '"knn"' in (run / f"checkpoints/step-00000002/{MARKER}").read_text()

    told: list[str] = []
    assert train(config, run, say=told.append, fresh=True)
    (aside,) = run.glob("before-*")
    assert any(str(aside) in line for line in told)
    assert (aside / f"checkpoints/step-00000002/{MARKER}").exists()
    assert [event["event"] for event in read_events(run)] == ["start", "checkpoint", "checkpoint", "done"]


def test_checkpoints_kept_elsewhere(pictures: Path, tmp_path: Path) -> None:
    """Whoever reads the run finds them; they are no part of its folder, so a fresh start may not pass over them."""
    run = tmp_path / "run"
    config = small(pictures, train={"images": 16, "checkpoints": str(tmp_path / "elsewhere")})
    assert train(config, run, say=quiet)
    assert not (run / "checkpoints").exists()
    assert load_run(run)[0].images == 16
    with pytest.raises(UserError, match=r"elsewhere: holds the checkpoints of a run.*another train\.checkpoints"):
        train(config, run, say=quiet, fresh=True)
    assert not list(run.glob("before-*"))
    assert train(config, run, say=quiet)


def made_by_torchvision(file: Path) -> tuple[str, nn.Module]:
    theirs = importlib.import_module("torchvision.models").regnet_y_400mf()
    torch.save(theirs.state_dict(), file)
    theirs.fc = nn.Identity()
    return "regnety_400mf", theirs


def made_by_timm(file: Path) -> tuple[str, nn.Module]:
    theirs = importlib.import_module("timm").create_model("resnet18", num_classes=5)
    torch.save({"state_dict": theirs.state_dict(), "epoch": 3}, file)
    theirs.reset_classifier(0)
    return "resnet18", theirs


def as_released_by_seer(file: Path) -> tuple[str, nn.Module]:
    """VISSL's names and nesting."""
    source = build_trunk("regnety_200mf")
    names = source.names_in("vissl")
    trunk = {f"_feature_blocks.{names[ours]}": tensor for ours, tensor in source.state_dict().items()}
    model = {"trunk": trunk, "heads": {"0.projection_head.0.weight": torch.zeros(1)}}
    torch.save({"classy_state_dict": {"base_model": {"model": model}}, "iteration": 7}, file)
    return "regnety_200mf", source


def as_released_by_swav(file: Path) -> tuple[str, nn.Module]:
    source = build_trunk("resnet18")
    heads = {"projection_head.0.weight": torch.zeros(1), "prototypes.weight": torch.zeros(1)}
    torch.save({f"module.{key}": tensor for key, tensor in {**source.state_dict(), **heads}.items()}, file)
    return "resnet18", source


@pytest.mark.slow
@pytest.mark.parametrize(
    "make", [made_by_torchvision, made_by_timm, as_released_by_seer, as_released_by_swav],
    ids=["torchvision", "timm", "SEER", "SwAV"],
)  # fmt: skip
def test_a_run_from_anothers_weights(torchvision: ModuleType, pictures: Path, tmp_path: Path, make: Any) -> None:
    """Its first checkpoint has their features; a file that does not fit is reported, and starts nothing."""
    run = tmp_path / "run"
    name, theirs = make(tmp_path / "theirs.pth")
    config = small(pictures, model={"name": name}, train={"images": 8})
    save_file({"stem.0.weight": torch.zeros(1), "adapter": torch.zeros(1)}, tmp_path / "other.safetensors")
    with pytest.raises(UserError, match=rf"not the weights of {name} .* missing \(.*unexpected \(adapter"):
        start(config, run, quiet, init_from=tmp_path / "other.safetensors")
    assert not (run / "checkpoints").exists()
    assert start(config, run, quiet, init_from=tmp_path / "theirs.pth")
    first = Checkpoints(open_store(run / "checkpoints")).open(0).whole("network")
    trunk = build_trunk(name)
    trunk.load_state_dict({key.removeprefix("trunk."): t for key, t in first.items() if key.startswith("trunk.")})
    images = torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        assert torch.allclose(trunk.eval()(images), theirs.eval()(images), rtol=1e-4, atol=1e-5)


def quiet(_line: str) -> None: ...


@pytest.mark.parametrize("number", SIGNALS)
def test_every_signal_is_a_request_and_handlers_are_put_back(number: signal.Signals) -> None:
    before = signal.default_int_handler
    outer = signal.signal(number, before)  # under nohup SIGHUP is ignored, which it would stay
    try:
        with StopRequest(60.0) as stop:
            assert stop.reason is None
            signal.raise_signal(number)
            assert stop.reason == number.name
        assert signal.getsignal(number) == before
    finally:
        signal.signal(number, outer)


@pytest.mark.parametrize("name", ["SEER_PIPE_DEADLINE", "SLURM_JOB_END_TIME"])
def test_the_end_of_the_allocation_is_a_request(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, str(int(time.time()) + 1000))
    with StopRequest(100.0) as stop:
        assert stop.reason is None
        monkeypatch.setattr(time, "time", lambda: float(os.environ[name]) - 99)
        assert stop.reason == "the allocation ends soon"


def test_a_short_allocation_is_still_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """Asked to stop ten minutes before the end of five, a run takes the first half."""
    monkeypatch.setenv("SEER_PIPE_DEADLINE", str(time.time() + 300))
    with StopRequest(600.0) as stop:
        assert stop.reason is None


@pytest.mark.parametrize("name", ["SEER_PIPE_DEADLINE", "SLURM_JOB_END_TIME"])
def test_a_deadline_in_the_past_is_none_and_is_reported(
    monkeypatch: pytest.MonkeyPatch, pictures: Path, tmp_path: Path, name: str
) -> None:
    """As in a terminal that was opened inside an allocation that is over."""
    monkeypatch.setenv(name, str(int(time.time()) - 1000))
    said: list[str] = []
    assert train(small(pictures, train={"images": 8}), tmp_path / "run", said.append)
    warning = next(event for event in read_events(tmp_path / "run") if event["event"] == "warning")
    assert re.match(rf"{name} is 1,00\d s in the past, so it is ignored", warning["reason"])
    assert f"warning: {warning['reason']}" in said


def test_a_stop_by_the_deadline_gives_its_reason(
    monkeypatch: pytest.MonkeyPatch, pictures: Path, tmp_path: Path
) -> None:
    begun = time.time()
    times = chain([begun], repeat(begun + 59))  # asked once at the start, then nearly at the end of the allocation
    monkeypatch.setattr(signals, "time", SimpleNamespace(time=lambda: next(times), monotonic=time.monotonic))
    monkeypatch.setenv("SLURM_JOB_END_TIME", str(begun + 60))
    said: list[str] = []
    assert not train(small(pictures), tmp_path / "run", said.append)
    assert said[-1] == "stopped after 0 of 12 steps (the allocation ends soon); the same command resumes it"


@pytest.mark.parametrize("text", ["tomorrow", "2026-01-31T12:00", "nan", "inf"])
def test_a_deadline_of_ours_that_cannot_be_read_is_refused(
    monkeypatch: pytest.MonkeyPatch, pictures: Path, tmp_path: Path, text: str
) -> None:
    monkeypatch.setenv("SLURM_JOB_END_TIME", "Unknown")
    assert deadline() is None
    monkeypatch.setenv("SEER_PIPE_DEADLINE", text)
    with pytest.raises(UserError, match=rf"SEER_PIPE_DEADLINE={text}: must be .* Unix seconds"):
        train(small(pictures), tmp_path / "run", quiet)
    assert not (tmp_path / "run").exists()


def test_nothing_is_left_of_a_start_that_is_refused(tmp_path: Path) -> None:
    """Not the folders that it made, nor a lock in one that was there; what a run has stays."""
    refused = small(tmp_path / "no set")
    (tmp_path / "there").mkdir()
    for run in (tmp_path / "new/run", tmp_path / "there"):
        with pytest.raises(UserError):
            train(refused, run, quiet)
    assert [path.name for path in tmp_path.rglob("*")] == ["there"]
    (tmp_path / "there/mine.txt").touch()
    with pytest.raises(UserError):
        train(refused, tmp_path / "there", quiet)
    assert (tmp_path / "there/mine.txt").exists()


def test_a_lock_that_a_refused_start_removes_locks_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A start that opened it just before takes the next one, which others see."""
    honest, refused = fcntl.flock, iter([True])

    def late(file: Any, how: int) -> None:
        if next(refused, False):
            (tmp_path / "run" / LOCK).unlink()
            (tmp_path / "run").rmdir()
        honest(file, how)

    monkeypatch.setattr(fcntl, "flock", late)
    first = World(0, 1, torch.device("cpu"))
    with only_start(tmp_path / "run", first):
        with pytest.raises(UserError, match="already running"), only_start(tmp_path / "run", first):
            pass
        assert (tmp_path / "run" / LOCK).exists()
    assert (tmp_path / "run" / LOCK).exists()  # a start that was not refused


def test_durations_are_read_with_their_units() -> None:
    config = settings.Train(batch=8, images=8, stop_before="10m")  # type: ignore[arg-type]
    assert config.stop_before == 600
