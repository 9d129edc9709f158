"""SimCLR against equation 1 of its paper, row by row in float64, and its form for several positives."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seer_pipe import config as settings
from seer_pipe.objectives.simclr.objective import Simclr
from seer_pipe.objectives.simclr.settings import SimclrSettings
from seer_pipe.recipes import load_recipe
from seer_pipe.train.build import outline, parameter_groups
from tests.objectives.embeddings import BATCH, alike, found, measured
from tests.objectives.moments import at

DIM, TEMPERATURE = 5, 0.2
SETTINGS = SimclrSettings(name="simclr")


def pair(z: Tensor, i: int, j: int) -> Tensor:
    """Equation 1: the loss of row i with its positive j among all rows."""

    def similarity(k: int) -> Tensor:
        return torch.dot(z[i], z[k]) / (z[i].norm() * z[k].norm())

    others = sum((similarity(k) / TEMPERATURE).exp() for k in range(len(z)) if k != i)
    return -((similarity(j) / TEMPERATURE).exp() / others).log()


def reference(z: Tensor, crops: int) -> Tensor:
    """The mean over all ordered pairs of crops of an image: for two crops, algorithm 1 of the paper."""
    rows = range(len(z))
    losses = [pair(z, i, j) for i in rows for j in rows if i != j and i % BATCH == j % BATCH]
    assert len(losses) == len(z) * (crops - 1)
    return torch.stack(losses).mean()


@pytest.mark.parametrize("crops", [2, 4])
def test_loss_and_gradient_equal_the_paper(crops: int) -> None:
    mine, published = (alike(crops, DIM).requires_grad_() for _ in range(2))
    loss, _ = Simclr(crops, TEMPERATURE).loss(mine, at(0))
    expected = reference(published, crops)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(*torch.autograd.grad(loss, mine), *torch.autograd.grad(expected, published))


def test_half_precision_outputs_are_compared_in_float32() -> None:
    rows = alike(2, DIM)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, metrics = Simclr(2, TEMPERATURE).loss(rows.bfloat16(), at(0), log=True)
    assert loss.dtype == metrics["loss"].dtype == torch.float32
    torch.testing.assert_close(loss.double(), reference(rows.bfloat16().double(), 2), rtol=1e-6, atol=0)


def of(rows: Tensor, crops: int = 2) -> dict[str, float]:
    values = measured(Simclr(crops, TEMPERATURE), rows)
    return values | {"loss_above_chance": values["loss"] - math.log(crops * BATCH - 1)}  # as a run logs it


def test_metrics_and_signs_tell_learning_from_collapse() -> None:
    image = torch.eye(BATCH)
    learnt, collapsed = of(torch.cat([image, image])), of(torch.ones(2 * BATCH, DIM))
    assert learnt["top1"] == 1
    assert learnt["positive_similarity"] == pytest.approx(1)
    assert learnt["negative_similarity"] == pytest.approx(0, abs=1e-6)
    assert collapsed["negative_similarity"] == pytest.approx(1)
    assert collapsed["loss"] == pytest.approx(math.log(2 * BATCH - 1))  # chance
    assert found(SETTINGS, learnt) == [False, False, False]
    assert found(SETTINGS, collapsed) == [True, True, True]


def test_negative_similarity_is_the_mean_over_pairs_of_other_images() -> None:
    rows = alike(3, DIM)
    z = F.normalize(rows, dim=1)
    other = [float(z[i] @ z[j]) for i in range(len(z)) for j in range(len(z)) if i % BATCH != j % BATCH]
    values = of(rows, 3)
    assert values["negative_similarity"] == pytest.approx(sum(other) / len(other), rel=1e-5)
    nearest = (z @ z.T).fill_diagonal_(-2).argmax(dim=1)
    assert values["top1"] == pytest.approx(float((nearest % BATCH == torch.arange(len(z)) % BATCH).double().mean()))


def test_chance_is_that_of_all_other_crops() -> None:
    config = load_recipe_of(4096)
    assert settings.derive(config, 10_000).chance_loss == pytest.approx(math.log(2 * 4096 - 1))


def load_recipe_of(batch: int) -> settings.Config:
    return load_recipe(Path("simclr_resnet50"), [f"train.batch={batch}", "train.epochs=20"])


@pytest.mark.parametrize(("hidden", "layers"), [([2048], 2), ([2048, 2048], 3)])
def test_the_projector_is_that_of_version_1_or_2(hidden: list[int], layers: int) -> None:
    """BatchNorm follows every layer; the last layer has no bias, and the shift of its BatchNorm stays at zero."""
    config = load_recipe_of(4096)
    config = config.model_copy(update={"objective": SimclrSettings(name="simclr", head={"hidden": hidden})})
    network = outline(config)
    linear = [layer for layer in network.head.modules() if isinstance(layer, nn.Linear)]
    norms = [layer for layer in network.head.modules() if isinstance(layer, nn.BatchNorm1d)]
    assert len(linear) == len(norms) == layers
    assert [layer.bias is not None for layer in linear] == [True] * (layers - 1) + [False]
    still = [group for group in parameter_groups(network, []) if group["rate"] == 0]
    assert [parameter is norms[-1].bias for group in still for parameter in group["params"]] == [True]
