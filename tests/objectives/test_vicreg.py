"""VICReg against section 4.1 of its paper in float64, crop by crop and entry by entry."""

import pytest
import torch
from torch import Tensor, nn

from seer_pipe.errors import UserError
from seer_pipe.objectives.column_settings import by_rows
from seer_pipe.objectives.vicreg.objective import Vicreg
from seer_pipe.objectives.vicreg.settings import VicregSettings
from tests.objectives.embeddings import BATCH, alike, found, measured
from tests.objectives.moments import at
from tests.train.helpers import small
from tests.train.test_step import TinyTrunk

SETTINGS = VicregSettings(name="vicreg")


def variance_and_covariance(z: Tensor) -> tuple[Tensor, Tensor]:
    """The two regularisers of one crop [BATCH, D], weighted as published, without the official half of the first."""
    dim = z.shape[1]
    cov = torch.stack(
        [torch.stack([((z[:, i] - z[:, i].mean()) * (z[:, j] - z[:, j].mean())).sum() for j in range(dim)])
         for i in range(dim)]
    ) / (BATCH - 1)  # fmt: skip
    lacking = [(1 - (cov[d, d] + 1e-4).sqrt()).clamp_min(0) for d in range(dim)]
    off = [cov[i, j] ** 2 for i in range(dim) for j in range(dim) if i != j]
    return 25 * sum(lacking) / dim, sum(off) / dim


def reference(z: Tensor, pairs: list[tuple[int, int]]) -> Tensor:
    distances = [25 * ((z[a] - z[v]) ** 2).sum() / z[a].numel() for a, v in pairs]
    variances, covariances = zip(*map(variance_and_covariance, z), strict=True)
    return sum(distances) / len(pairs) + sum(variances) / len(z) + 2 * sum(covariances) / len(z)


PAIRS = {2: [(0, 1)], 3: [(0, 1), (0, 2), (1, 2)], 4: [(0, 1), (0, 2), (0, 3), (1, 2), (1, 3)]}


@pytest.mark.parametrize("dim", [4, 9])
@pytest.mark.parametrize("crops", PAIRS)
def test_loss_and_gradient_equal_the_paper(crops: int, dim: int) -> None:
    """By products of columns, and of rows. Two crops: half of both hinges, the sum of both covariances."""
    assert by_rows(crops, crops, dim, BATCH) == (dim == 9)
    mine, published = (0.5 * alike(crops, dim) for _ in range(2))  # some deviations are above 1, some below
    loss, _ = Vicreg(SETTINGS, crops).loss(mine.requires_grad_(), at(0))
    expected = reference(published.requires_grad_().unflatten(0, (crops, BATCH)), PAIRS[crops])
    torch.testing.assert_close(loss, expected, rtol=1e-11, atol=0)
    torch.testing.assert_close(*torch.autograd.grad(loss, mine), *torch.autograd.grad(expected, published))


def test_half_precision_outputs_are_summed_in_float32() -> None:
    rows = alike(2, 4).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, metrics = Vicreg(SETTINGS, 2).loss(rows, at(0), log=True)
    assert loss.dtype == metrics["loss"].dtype == torch.float32
    torch.testing.assert_close(loss.double(), reference(rows.double().unflatten(0, (2, BATCH)), [(0, 1)]), rtol=1e-5,
                               atol=0)  # fmt: skip


def test_metrics_and_signs_tell_learning_from_collapse() -> None:
    image = torch.linalg.qr(torch.randn(BATCH, 5, generator=torch.Generator().manual_seed(0)))[0]
    image = torch.linalg.qr(image - image.mean(0))[0] * (BATCH - 1) ** 0.5
    learnt = measured(Vicreg(SETTINGS, 2), torch.cat([image, image]))
    assert learnt["hinge"] == learnt["distance"] == 0
    assert learnt["redundancy"] == pytest.approx(0, abs=1e-5)
    assert found(SETTINGS, learnt) == [False, False]
    collapsed = measured(Vicreg(SETTINGS, 2), torch.ones(2 * BATCH, 5))
    assert collapsed["loss"] == pytest.approx(SETTINGS.chance_loss(None, BATCH))  # type: ignore[arg-type]
    assert found(SETTINGS, collapsed)[0]


def test_the_expander_is_the_published_one() -> None:
    with torch.device("meta"):
        network = SETTINGS.network(TinyTrunk)
    linear = [layer for layer in network.head.modules() if isinstance(layer, nn.Linear)]
    assert [layer.out_features for layer in linear] == [8192] * 3
    assert [layer.bias is not None for layer in linear] == [True, True, False]


@pytest.mark.parametrize(("anchors", "message"), [([0, 3], "anchors names crop 3 of 3"), ([], "at least 1 item")])
def test_anchors_outside_the_crops_are_refused(anchors: list[int], message: str) -> None:
    crops = {"crops": [{"count": 3, "size": 16, "scale": [0.3, 1]}], "augment": {"blur_p": 0}}
    with pytest.raises(UserError, match=message):
        small("unused", views=crops, objective={"name": "vicreg", "anchors": anchors})
