"""Barlow Twins against equations 1 and 2 of its paper in float64, crop by crop and entry by entry."""

import pytest
import torch
from torch import Tensor, nn

from seer_pipe.objectives.barlow_twins.objective import BarlowTwins
from seer_pipe.objectives.barlow_twins.settings import BarlowTwinsSettings
from seer_pipe.objectives.column_settings import by_rows
from seer_pipe.objectives.metrics import WIDEST, directions
from tests.objectives.embeddings import BATCH, alike, found, measured
from tests.objectives.moments import at
from tests.train.test_step import TinyTrunk

LAMBDA = 0.02


def objective(crops: int, dim: int = 4, **settings: object) -> BarlowTwins:
    made = BarlowTwinsSettings.model_validate({"name": "barlow_twins", "off_diagonal": LAMBDA, **settings})
    return BarlowTwins(crops, made.pairs(crops), made.off_diagonal)


def of_pair(one: Tensor, other: Tensor) -> Tensor:
    """The loss of two crops [BATCH, D]; the published BatchNorm has 1e-5 beside its variance."""

    def standard(z: Tensor) -> Tensor:
        mean = sum(z) / BATCH
        return (z - mean) / (sum((row - mean) ** 2 for row in z) / BATCH + 1e-5).sqrt()

    one, other = standard(one), standard(other)
    loss = torch.zeros((), dtype=torch.float64)
    for i in range(one.shape[1]):
        for j in range(one.shape[1]):
            c = (one[:, i] * other[:, j]).sum() / BATCH
            loss += (1 - c) ** 2 if i == j else LAMBDA * c**2
    return loss


PAIRS = {2: [(0, 1)], 4: [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]}


@pytest.mark.parametrize("dim", [3, 17])
@pytest.mark.parametrize("crops", PAIRS)
def test_loss_and_gradient_equal_the_paper(crops: int, dim: int) -> None:
    """By products of columns, and of rows."""
    assert by_rows(crops, len(PAIRS[crops]), dim, BATCH) == (dim == 17)
    mine, published = (alike(crops, dim).requires_grad_() for _ in range(2))
    loss, _ = objective(crops).loss(mine, at(0))
    z = published.unflatten(0, (crops, BATCH))
    expected = torch.stack([of_pair(z[a], z[v]) for a, v in PAIRS[crops]]).mean()
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
    torch.testing.assert_close(*torch.autograd.grad(loss, mine), *torch.autograd.grad(expected, published))


def test_half_precision_outputs_are_summed_in_float32() -> None:
    rows = alike(2, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, metrics = objective(2).loss(rows, at(0), log=True)
    assert loss.dtype == metrics["loss"].dtype == torch.float32
    torch.testing.assert_close(loss.double(), of_pair(*rows.double().chunk(2)), rtol=1e-5, atol=0)


def test_metrics_and_signs_tell_learning_from_collapse() -> None:
    settings = BarlowTwinsSettings(name="barlow_twins")
    image = torch.linalg.qr(torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(0)))[0]
    image = torch.linalg.qr(image - image.mean(0))[0]  # columns without mean that correlate with no other
    learnt = measured(objective(2), torch.cat([image, image]))
    assert learnt["on_diagonal"] == pytest.approx(1, abs=1e-3)
    assert learnt["off_diagonal"] == pytest.approx(0, abs=1e-3)
    assert found(settings, learnt) == [False, False, False]
    repeated = measured(objective(2), image[:, :1].repeat(2, 5))
    assert repeated["off_diagonal"] == pytest.approx(1, abs=1e-3)
    assert found(settings, repeated) == [False, True, True]
    unlike = measured(objective(2), torch.cat([image, image.flip(1).roll(1, 1)]))
    assert unlike["on_diagonal"] < 0.5


def test_a_batch_that_is_all_alike_costs_chance() -> None:
    settings = BarlowTwinsSettings.model_validate({"name": "barlow_twins", "head": {"dim": 5}})
    values = measured(objective(2), torch.ones(2 * BATCH, 5))
    assert values["loss"] == settings.chance_loss(None, BATCH) == 5  # type: ignore[arg-type]
    assert found(settings, values)[0]


def test_very_wide_embeddings_are_measured_by_their_first_dimensions() -> None:
    z = torch.randn(2, BATCH, WIDEST + 500)
    unit = directions(z)
    assert unit.shape == (2 * BATCH, WIDEST)
    torch.testing.assert_close(unit.norm(dim=1), torch.ones(2 * BATCH))
    torch.testing.assert_close(unit[BATCH], z[1, 0, :WIDEST] / z[1, 0, :WIDEST].norm())


def test_biases_and_batch_norm_may_have_a_rate_of_their_own() -> None:
    settings = BarlowTwinsSettings.model_validate({"name": "barlow_twins", "norm_rate": 0.1, "head": {"dim": 5}})
    network = settings.network(TinyTrunk)
    vectors = {name for name, parameter in network.named_parameters() if parameter.ndim == 1}
    assert network.groups.keys() == vectors
    assert {group.rate for group in network.groups.values()} == {0.1}
    assert all(layer.bias is None for layer in network.head.modules() if isinstance(layer, nn.Linear))
