"""Exact: what is stopped and begun again ends as what never was, in every mode, and on other numbers of ranks."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from seer_pipe import config as settings
from seer_pipe.train.events import read_events
from seer_pipe.train.loop import train
from seer_pipe.train.step import TrainStep
from tests.distributed import run_ranks
from tests.train.helpers import assert_same_run, losses, on_the_board, small, spoiled_pictures, weights
from tests.train.null_streams import null_streams

STEPS, ASKED = 7, 3


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return spoiled_pictures(tmp_path_factory.mktemp("pictures"))


def recipe(pictures: Path | str, **sections: dict[str, Any]) -> settings.Config:
    sections["train"] = {"images": 8 * STEPS, **sections.get("train", {})}
    return small(pictures, data={"max_bad_fraction": 0.5}, **sections)


def ask_at(line: str) -> None:
    """Given what a run says, asks it to stop after so many steps, as a scheduler would; on the first rank alone."""
    if line.startswith(f"step {ASKED}/"):
        os.kill(os.getpid(), signal.SIGTERM)


def straight_and_stopped(config: settings.Config, folder: Path) -> None:
    """A run to its end, and one that is asked to stop on its way and begun again."""
    assert train(config, folder / "straight", say=quiet)
    assert not train(config, folder / "stopped", say=ask_at)
    assert train(config, folder / "stopped", say=quiet)


def quiet(_line: str) -> None: ...


# LARC with a queue: all other tests here, and test_faults.py
VARIANTS: dict[str, dict[str, dict[str, Any]]] = {
    "sgd in pieces, without a queue": {
        "optimizer": {"name": "sgd", "lr": 0.1}, "objective": {"queue": 0, "prototypes": 8}, "train": {"accumulate": 2},
    },
    "adamw": {"optimizer": {"name": "adamw", "lr": 0.01}},
}  # fmt: skip


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_process(pictures: Path, tmp_path: Path, variant: str) -> None:
    straight_and_stopped(recipe(pictures, **VARIANTS[variant]), tmp_path)
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")
    (stop,) = [event for event in read_events(tmp_path / "stopped") if event["event"] == "stop"]
    assert (stop["reason"], stop["step"] - ASKED) in (("SIGTERM", 1), ("SIGTERM", 2))  # agreed on a step later


def as_rank(pictures: str, folder: str, parallel: str) -> None:
    with null_streams():
        straight_and_stopped(recipe(pictures, train={"parallel": parallel}), Path(folder))


def spy_on_batches(seen: list[torch.Tensor]) -> Callable[..., Any]:
    honest = TrainStep.__call__

    def spy(self: TrainStep, crops: list[torch.Tensor], *args: Any) -> Any:
        seen.append(torch.cat([crop.flatten(1) for crop in crops], dim=1))
        return honest(self, crops, *args)

    TrainStep.__call__ = spy  # type: ignore[method-assign]
    return honest


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["fsdp2", "ddp", "fairscale"])
def test_two_ranks(pictures: Path, tmp_path: Path, parallel: str) -> None:
    run_ranks(2, as_rank, str(pictures), str(tmp_path), parallel)
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


@pytest.mark.slow
def test_other_numbers_of_ranks_see_the_same_batches(pictures: Path, tmp_path: Path) -> None:
    """Begun alone, continued by two that share its weights: the pixels are the same, and the loss but for the order of
    its sums, whose last bits every step enlarges a little. The memory layout is another then, too."""
    config = recipe(pictures, train={"channels_last": True})
    batches: list[torch.Tensor] = []
    honest = spy_on_batches(batches)
    try:
        assert train(config, tmp_path / "alone", say=quiet)
    finally:
        TrainStep.__call__ = honest  # type: ignore[method-assign]
    assert not train(config, tmp_path / "moved", say=ask_at)
    at = max(losses(tmp_path / "moved"))
    first, second = run_ranks(2, moved, str(pictures), str(tmp_path / "moved"))
    assert len(first) == len(second) == STEPS - at
    for whole, *parts in zip(batches[at:], first, second, strict=True):
        assert torch.equal(whole, torch.cat(parts))
    alone, other = losses(tmp_path / "alone"), losses(tmp_path / "moved")
    assert alone.keys() == other.keys()
    assert [step for step, _ in on_the_board(tmp_path / "moved")] == list(alone)
    assert all(alone[step] == other[step] for step in range(1, at + 1))
    assert abs(alone[at + 1] - other[at + 1]) < 1e-4
    assert all(abs(alone[step] - other[step]) < 1e-2 for step in alone)
    assert weights(tmp_path / "alone").keys() == weights(tmp_path / "moved").keys()


def moved(pictures: str, run: str) -> list[torch.Tensor]:
    """What this rank trained on, a row an image, step by step."""
    seen: list[torch.Tensor] = []
    spy_on_batches(seen)
    assert train(recipe(pictures, train={"parallel": "fsdp2", "channels_last": False}), Path(run), say=quiet)
    return seen
