"""Losses over the whole batch make the host wait for nothing."""

from contextlib import nullcontext
from typing import Any

import pytest
import torch

from seer_pipe.objectives.barlow_twins.objective import BarlowTwins
from seer_pipe.objectives.base import Objective
from seer_pipe.objectives.random_walk.objective import RandomWalk
from seer_pipe.objectives.random_walk.settings import RandomWalkSettings
from seer_pipe.objectives.simclr.objective import Simclr
from seer_pipe.objectives.tracking.objective import Tracking
from seer_pipe.objectives.tracking.settings import TrackingSettings
from seer_pipe.objectives.vicreg.objective import Vicreg
from seer_pipe.objectives.vicreg.settings import VicregSettings
from tests.host_sync import no_host_sync
from tests.objectives.moments import at

CROPS, BATCH = 3, 8
OBJECTIVES: dict[str, Objective] = {
    "barlow_twins": BarlowTwins(CROPS, [(0, 1), (0, 2), (1, 2)], 0.01),
    "random_walk": RandomWalk(RandomWalkSettings(name="random_walk"), CROPS, 1, 0),
    "simclr": Simclr(CROPS, 0.1),
    "tracking": Tracking(TrackingSettings(name="tracking"), 0),
    "tracking, nearest": Tracking(TrackingSettings(name="tracking", hard_after=0), 0),
    "vicreg": Vicreg(VicregSettings(name="vicreg"), CROPS),
}


def step(device: str, name: str, dim: int) -> None:
    outputs = torch.randn(CROPS * BATCH, dim, device=device, requires_grad=True)
    with no_host_sync(device):
        loss, _ = OBJECTIVES[name].loss(outputs, at(0))
        loss.backward()


@pytest.mark.parametrize("dim", [4, 32])  # products of columns, of rows
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_makes_the_host_wait_for_nothing(name: str, dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: Any, **__: Any) -> Any:
        return nullcontext()

    monkeypatch.setattr(torch, "autocast", none)  # meta has none
    step("meta", name, dim)


@pytest.mark.gpu
@pytest.mark.parametrize("dim", [4, 32])
@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_step_makes_the_host_wait_for_nothing_on_a_gpu(name: str, dim: int) -> None:
    step("cuda", name, dim)
