"""Runs of objectives through the real entry, resumed and spoilt."""

import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seer_pipe import config as settings
from seer_pipe.distributed.collectives import local
from seer_pipe.run import start
from seer_pipe.train.checkpoint import Checkpoints
from seer_pipe.train.committed import store_of
from seer_pipe.train.restore import run_state
from seer_pipe.train.step import TrainStep

State = dict[str, Tensor]


def quiet(_line: str) -> None: ...


def resumed_from(config: settings.Config, run: Path, step: int, on_purpose: Collection[str] = ()) -> Path:
    """A copy of a run as if it had been killed after the checkpoint of ``step``, trained to its end."""
    copy = run.with_name(f"{run.name}-from-{step}")
    shutil.copytree(run, copy)
    Checkpoints(store_of(copy)).give_up_after(step)
    assert start(config, copy, say=quiet, on_purpose=on_purpose)
    return copy


def spoil(patch: pytest.MonkeyPatch, images: int) -> list[tuple[State, State]]:
    """Makes the crops of the step that begins with so many images seen NaN; gives all state before and after it."""
    seen: list[tuple[State, State]] = []
    honest = TrainStep.__call__

    def call(self: TrainStep, crops: list[Tensor], moment: Any, log: bool) -> Any:
        if moment.images != images:
            return honest(self, crops, moment, log)
        before = _state(self)
        told = honest(self, [torch.full_like(crop, torch.nan) for crop in crops], moment, log)
        seen.append((before, _state(self)))
        return told

    patch.setattr(TrainStep, "__call__", call)
    return seen


def _state(step: TrainStep) -> State:
    tensors = run_state(step._network, step._optimizer, step._objective)
    return {name: local(tensor).clone() for name, tensor in tensors.items()}
