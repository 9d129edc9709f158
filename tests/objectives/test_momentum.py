"""Momentum copies: what they see, and how fast they follow."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from seer_pipe.objectives.base import Moment
from seer_pipe.objectives.momentum import MomentumNetwork, momentum_at
from tests.objectives.test_base import Trunk


def test_the_copies_see_the_target_crops_alone_and_have_no_gradient() -> None:
    crops = [torch.randn(3, 3, size, size) for size in (8, 8, 4)]
    network = MomentumNetwork(  # type: ignore[arg-type]
        Trunk(), nn.Linear(3, 2), Trunk(), nn.Linear(3, 2), original=nn.Identity(), targets=[1, 0]
    )
    online, targets = network(crops)
    pooled: list[Tensor] = [crop.mean(dim=(2, 3)) for crop in crops]
    torch.testing.assert_close(online, network.head(torch.cat(pooled)))
    torch.testing.assert_close(targets, network.copied_head(torch.cat([pooled[1], pooled[0]])))
    assert online.requires_grad
    assert not targets.requires_grad


@given(st.floats(0.9, 0.9999), st.integers(0, 10**9), st.integers(1, 10**9), st.sampled_from([64, 256, 4096]))
def test_momentum_goes_from_start_to_one_and_trails_by_images(start: float, seen: int, total: int, batch: int) -> None:
    moment = Moment(seen, total)
    weight = momentum_at(start, 1.0, moment, batch, batch)
    assert start - 1e-12 <= weight <= 1
    assert momentum_at(start, 1.0, Moment(0, total), batch, batch) == pytest.approx(start)
    assert momentum_at(start, 1.0, Moment(total, total), batch, batch) == pytest.approx(1)
    half = momentum_at(start, 1.0, moment, batch // 2, batch)
    assert half**2 == pytest.approx(weight)  # two steps of half the batch move as far as one
