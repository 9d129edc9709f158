"""Relative patch location: loss and gradient against their definition; the head, pair by pair; what it takes."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from seer_pipe import config as settings
from seer_pipe.data.layouts import labels
from seer_pipe.data.views import draw
from seer_pipe.errors import UserError
from seer_pipe.objectives.base import Moment
from seer_pipe.objectives.relative_patch.objective import RelativePatch
from seer_pipe.train.build import build_crops, build_network
from tests.train.helpers import small

GRID = {"count": 1, "size": 16, "scale": [0.6, 1], "layout": "grid"}
IMAGES = 5


def config(crops: list[dict[str, Any]] | None = None) -> settings.Config:
    return small(
        "unused",
        views={"crops": crops or [GRID], "augment": {"blur_p": 0}},
        objective={"name": "relative_patch", "hidden": 6},
    )


def test_loss_and_gradient_are_those_of_the_definition() -> None:
    specs, side = build_crops(config()), np.full(IMAGES, 90)
    known = labels(draw(0, 0, np.arange(IMAGES), side, side, specs), specs)
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(8 * IMAGES, 8, dtype=torch.float64, generator=generator).requires_grad_()
    loss, metrics = RelativePatch().loss(z, Moment(0, 100, labels=known), log=True)
    loss.backward()
    directions = np.repeat(np.arange(8), IMAGES)  # above left, above, above right, left, right, below left, …
    p = np.exp(z.detach().numpy())
    p /= p.sum(1, keepdims=True)
    rows = np.arange(8 * IMAGES)
    assert loss.item() == pytest.approx(-np.log(p[rows, directions]).mean(), rel=1e-12)
    p[rows, directions] -= 1
    assert z.grad is not None
    np.testing.assert_allclose(z.grad.numpy(), p / len(rows), rtol=1e-10, atol=1e-14)
    assert float(metrics["pretext_accuracy"]) == pytest.approx((z.detach().argmax(1).numpy() == directions).mean())


def test_each_neighbour_is_looked_at_beside_the_middle() -> None:
    network = build_network(config()).double().eval()
    generator = torch.Generator().manual_seed(0)
    crops = [torch.randn(IMAGES, 3, 16, 16, dtype=torch.float64, generator=generator) for _ in range(9)]
    found = network(crops).unflatten(0, (8, IMAGES))
    alone = []
    for crop in crops:
        mean, deviation = crop.mean((2, 3), keepdim=True), crop.var((2, 3), keepdim=True, correction=0).add(1e-5).sqrt()
        alone.append(network.trunk((crop - mean) / deviation))
    head: Any = network.head
    for direction, cell in enumerate((0, 1, 2, 3, 5, 6, 7, 8)):
        torch.testing.assert_close(found[direction], head.pair(torch.cat([alone[4], alone[cell]], dim=1)))


@pytest.mark.parametrize("crops", [[{**GRID, "count": 2}], [GRID, GRID], [{**GRID, "grid": {"side": 4}}]])
def test_other_grids_are_refused(crops: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="objective relative_patch needs one grid of 3 x 3 patches"):
        config(crops)


def test_signs_name_a_shortcut_and_uniform_guesses() -> None:
    signs = config().objective.signs()

    def advice(loss: float, accuracy: float) -> list[str]:
        verdicts = [(sign, sign.judge({"loss": loss, "pretext_accuracy": accuracy})) for sign in signs]
        return [sign.advice for sign, verdict in verdicts if verdict is not None and not verdict[0]]

    assert advice(1.5, 0.4) == []
    (shortcut,) = advice(0.3, 0.9)
    assert "views.augment.channel_p" in shortcut
    (uniform,) = advice(math.log(8), 1 / 8)
    assert "optimizer.lr" in uniform
