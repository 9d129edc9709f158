"""Jigsaw puzzles: the orders, the loss and its gradient against their definition, what a patch may give away."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from seer_pipe import config as settings
from seer_pipe.data.layouts import labels
from seer_pipe.data.views import draw
from seer_pipe.errors import UserError
from seer_pipe.objectives.base import Moment
from seer_pipe.objectives.jigsaw.objective import Jigsaw
from seer_pipe.objectives.jigsaw.permutations import far_apart
from seer_pipe.objectives.settings import Setup
from seer_pipe.train.build import build_crops, build_network
from tests.train.helpers import small

GRID = {"count": 1, "size": 16, "scale": [0.6, 1], "layout": "shuffled_grid"}
IMAGES = 5


def config(crops: list[dict[str, Any]] | None = None, **objective: Any) -> settings.Config:
    return small(
        "unused",
        views={"crops": crops or [GRID], "augment": {"blur_p": 0}},
        objective={"name": "jigsaw", "permutations": 7, "patch_dim": 6, **objective},
    )


def objective(config: settings.Config) -> Jigsaw:
    network = build_network(config)
    made = config.objective.objective(network, Setup(config.views, config.seed, 100, torch.device("cpu"), 8))
    assert isinstance(made, Jigsaw)
    return made


def cells(config: settings.Config) -> Tensor:
    """Labels of a batch, [9, IMAGES]."""
    specs, side = build_crops(config), np.full(IMAGES, 90)
    found = labels(draw(config.seed, 0, np.arange(IMAGES), side, side, specs), specs)
    assert found is not None
    return found


@pytest.mark.parametrize(("count", "least"), [(35, 7), (64, 7), (100, 6)])
def test_orders_are_far_apart(count: int, least: int) -> None:
    orders = far_apart(count, 0)
    assert (np.sort(orders, axis=1) == np.arange(9)).all()
    distance = (orders[:, None] != orders).sum(2)
    assert distance[np.triu_indices(count, 1)].min() == least


def test_orders_follow_from_the_seed() -> None:
    assert far_apart(20, 3, 4).tolist() == far_apart.__wrapped__(20, 3, 4).tolist()
    assert far_apart(20, 3, 4).tolist() != far_apart(20, 4, 4).tolist()
    assert len(np.unique(far_apart(24, 3, 4), axis=0)) == 24  # all that there are
    assert far_apart(3, 0)[1:].tolist() == [[2, 1, 6, 3, 0, 8, 4, 7, 5], [6, 8, 4, 1, 2, 5, 7, 0, 3]]


def test_loss_and_gradient_are_those_of_the_definition() -> None:
    made = config()
    jigsaw, known = objective(made), cells(made)
    z = torch.randn(IMAGES, 7, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    loss, metrics = jigsaw.loss(z, Moment(0, 100, labels=known), log=True)
    loss.backward()
    numbers = [far_apart(7, made.seed).tolist().index(order) for order in known.T.tolist()]
    p = np.exp(z.detach().numpy())
    p /= p.sum(1, keepdims=True)
    rows = np.arange(IMAGES)
    assert loss.item() == pytest.approx(-np.log(p[rows, numbers]).mean(), rel=1e-12)
    p[rows, numbers] -= 1
    assert z.grad is not None
    np.testing.assert_allclose(z.grad.numpy(), p / IMAGES, rtol=1e-10, atol=1e-14)
    assert float(metrics["pretext_accuracy"]) == pytest.approx((z.detach().argmax(1).numpy() == numbers).mean())


def test_patches_are_looked_at_in_their_places() -> None:
    """As sum over places of a part of the classifier, on what is found of the patch there."""
    network = build_network(config()).double().eval()
    generator = torch.Generator().manual_seed(0)
    crops = [torch.randn(IMAGES, 3, 16, 16, dtype=torch.float64, generator=generator) for _ in range(9)]
    head: Any = network.head
    weights = head.classify.weight.unflatten(1, (9, -1))
    wanted = head.classify.bias.clone().repeat(IMAGES, 1)
    for place, crop in enumerate(crops):
        mean, deviation = crop.mean((2, 3), keepdim=True), crop.var((2, 3), keepdim=True, correction=0).add(1e-5).sqrt()
        wanted += head.each(network.trunk((crop - mean) / deviation)) @ weights[:, place].T
    torch.testing.assert_close(network(crops), wanted)
    brighter = [
        crop * (1 + 0.1 * place) + place for place, crop in enumerate(crops)
    ]  # a patch's own light says nothing
    torch.testing.assert_close(network(brighter), wanted, rtol=1e-3, atol=1e-3)


def test_a_checkpoint_of_other_orders_is_refused() -> None:
    """Those of another release, say, for seed and number do not change in a run."""
    jigsaw = objective(config())
    saved = {name: tensor.clone() for name, tensor in jigsaw.state_dict().items()}
    jigsaw.load_state_dict(saved)
    saved["orders"] = saved["orders"].flip(0)
    with pytest.raises(UserError, match="its orders of the patches are not this run's"):
        jigsaw.load_state_dict(saved)


@pytest.mark.parametrize("crops", [[{**GRID, "count": 2}], [GRID, GRID], [{**GRID, "grid": {"side": 4}}]])
def test_other_grids_are_refused(crops: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match="objective jigsaw needs one grid of 3 x 3 patches"):
        config(crops)


def test_layouts_that_an_objective_does_not_take_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"objective jigsaw needs views\.crops of layout shuffled_grid, and one is grid"
    ):
        config([{**GRID, "layout": "grid"}])
    with pytest.raises(UserError, match=r"objective simsiam needs views\.crops of layout independent"):
        small("unused", views={"crops": [GRID], "augment": {"blur_p": 0}}, objective={"name": "simsiam"})


def test_a_trunk_of_patches_is_evaluated_in_their_resolution() -> None:
    assert config().views.largest == 64


def test_signs_name_a_shortcut_and_uniform_guesses() -> None:
    signs = config().objective.signs()

    def advice(loss: float, accuracy: float) -> list[str]:
        verdicts = [(sign, sign.judge({"loss": loss, "pretext_accuracy": accuracy})) for sign in signs]
        return [sign.advice for sign, verdict in verdicts if verdict is not None and not verdict[0]]

    assert advice(0.9, 0.6) == []
    (shortcut,) = advice(0.1, 0.95)
    assert "views.augment.channel_p" in shortcut
    (uniform,) = advice(math.log(7), 1 / 7)
    assert "objective.permutations" in uniform
