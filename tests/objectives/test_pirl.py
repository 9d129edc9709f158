"""PIRL against its equations in float64, image by image, with a bank and with a ring; its head; what it takes."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from seer_pipe.config import Config
from seer_pipe.errors import UserError
from seer_pipe.objectives.base import Moment
from seer_pipe.objectives.momentum import MomentumOutput
from seer_pipe.objectives.pirl.objective import Embeddings, Pirl, PirlHead
from seer_pipe.objectives.settings import Setup
from seer_pipe.train.build import build_network, outline
from tests.objectives.union import joined
from tests.train.helpers import small

IMAGES, DIM, SAMPLES, T, W = 4, 5, 12, 0.2, 0.3
GRID = {"count": 1, "size": 16, "scale": [0.6, 1], "layout": "shuffled_grid"}
CROP = {"count": 1, "size": 24, "scale": [0.3, 1]}


@pytest.fixture(autouse=True, scope="module")
def _listed() -> Iterator[None]:
    with joined():
        yield


def config(crops: list[dict[str, Any]] | None = None, **objective: Any) -> Config:
    many = 2 if objective.get("ring") else 1
    return small(
        "unused",
        views={"crops": crops or [{**CROP, "count": many}, GRID], "augment": {"blur_p": 0}},
        model={"name": "tiny"},
        objective={"name": "pirl", "dim": DIM, "negatives": 9, "temperature": T, "patches_weight": W, **objective},
    )


def objective(**changes: Any) -> Pirl:
    made = config(**changes)
    found = made.objective.objective(outline(made), Setup(made.views, 3, SAMPLES, torch.device("cpu"), IMAGES))
    assert isinstance(found, Pirl)
    return found


def embeddings(step: int) -> Embeddings:
    generator = torch.Generator().manual_seed(step)
    crop, patches = torch.randn(2, IMAGES, DIM, generator=generator, dtype=torch.float64)
    return Embeddings(crop.requires_grad_(), patches.requires_grad_())


def unit(rows: Tensor) -> Tensor:
    return rows / rows.norm(dim=-1, keepdim=True)


def infonce(v: Tensor, own: Tensor, others: list[Tensor]) -> Tensor:
    """L(v) = -log e^(v · m / T) / (e^(v · m / T) + sum over others)."""
    e = [(unit(v) @ row.double() / T).exp() for row in (own, *others)]
    return -(e[0] / torch.stack(e).sum()).log()


def agree(found: Tensor, wanted: Tensor, leaves: Embeddings) -> None:
    torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)  # the memory is kept in float32
    for leaf in leaves:
        mine, one = (torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in (found, wanted))
        torch.testing.assert_close(mine, one, rtol=1e-5, atol=1e-8)


def test_with_a_bank_both_look_for_the_row_of_the_crop() -> None:
    pirl = objective()
    rows: dict[int, Tensor] = {}
    for step, samples in enumerate([[1, 5, 7, 2], [3, 7, 1, 0], [0, 1, 2, 11]]):
        v, moment = embeddings(step), Moment(IMAGES * step, 1000, torch.tensor(samples))
        found, _ = pirl.loss(v, moment)
        drawn, terms = pirl._draw(moment).tolist(), []
        for n, i in enumerate(samples):
            others = [rows[j] for j in drawn if j in rows and j != i]
            if i in rows:
                terms.append((1 - W) * infonce(v.crop[n], rows[i], others) + W * infonce(v.patches[n], rows[i], others))
        agree(found, torch.stack(terms).mean() if terms else 0 * (v.crop + v.patches).sum(), v)
        for n, i in enumerate(samples):
            new = unit(v.crop[n].detach())
            rows[i] = unit(0.5 * rows[i] + 0.5 * new) if i in rows else new


def test_in_a_stream_both_look_for_what_the_copy_makes_of_another_crop() -> None:
    pirl = objective(ring=9)
    ring: list[Tensor] = []
    for step in range(4):
        v, copied = embeddings(step), torch.randn(IMAGES, DIM, dtype=torch.float64, generator=torch.manual_seed(step))
        moment = Moment(IMAGES * step, 1000, torch.arange(IMAGES) + IMAGES * step)
        found, metrics = pirl.loss(MomentumOutput(v, copied), moment, log=True)
        terms = [
            (1 - W) * infonce(v.crop[n], unit(copied[n]), ring) + W * infonce(v.patches[n], unit(copied[n]), ring)
            for n in range(IMAGES)
        ]
        agree(found, torch.stack(terms).mean(), v)
        assert metrics["remembered"].item() == 1
        ring = [*ring, *unit(copied)][-9:]
    assert pirl.settings.chance_loss(config(ring=9).views, IMAGES) == pytest.approx(math.log(10))


def test_published_noise_contrast_takes_both_as_well() -> None:
    """Of equal embeddings the weights add up to one loss: that of NPID with two crops."""
    pirl, npid = objective(loss="nce"), objective(loss="nce", patches_weight=0)
    for step in range(2):
        v = embeddings(0)
        moment = Moment(IMAGES * step, 1000, torch.arange(IMAGES))
        losses = [one.loss(Embeddings(v.crop, v.crop), moment)[0] for one in (pirl, npid)]
        torch.testing.assert_close(*losses)
    assert losses[0] > 0


def test_patches_are_joined_in_the_order_that_they_come_in() -> None:
    head = PirlHead(6, DIM).double()
    features = torch.randn(10 * IMAGES, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    crop, *patches = features.unflatten(0, (10, IMAGES))
    found = head(features)
    torch.testing.assert_close(found.crop, head.crop(crop))
    weights = head.patches.weight.unflatten(1, (9, DIM))
    wanted = sum((head.patch(patch) @ weights[:, place].T for place, patch in enumerate(patches)), head.patches.bias)
    torch.testing.assert_close(found.patches, wanted)


def test_a_stream_trains_a_copy_on_a_crop_of_its_own() -> None:
    network = build_network(config(ring=8))
    generator = torch.Generator().manual_seed(0)
    crops = [torch.randn(IMAGES, 3, size, size, generator=generator) for size in (24, 24, *[16] * 9)]
    online, copied = network(crops)
    assert online.crop.shape == online.patches.shape == copied.shape == (IMAGES, DIM)
    assert not copied.requires_grad
    crops[1] = -crops[1]
    network.eval()
    other_online, other_copied = network(crops)
    crops[1] = -crops[1]
    same_online, same_copied = network(crops)
    torch.testing.assert_close(other_online.crop, same_online.crop)
    assert not torch.allclose(other_copied, same_copied)


@pytest.mark.parametrize(
    ("crops", "ring", "many"),
    [([{**CROP, "count": 2}, GRID], 0, "1 crop,"), ([CROP, GRID], 8, "2 crops,"), ([GRID], 0, "1 crop,"),
     ([CROP, CROP], 0, "1 crop,"), ([GRID, CROP], 0, "1 crop,"), ([CROP, {**GRID, "count": 2}], 0, "1 crop,")],
)  # fmt: skip
def test_other_views_are_refused(crops: list[dict[str, Any]], ring: int, many: str) -> None:
    with pytest.raises(UserError, match=f"objective pirl needs {many} and then in views.crops a group of layout"):
        config(crops, ring=ring)


@pytest.mark.parametrize(("changes", "why"), [({"ring": 4}, "ring 4 is less than"),
                                              ({"ring": 16, "loss": "nce"}, "nce needs a bank")])  # fmt: skip
def test_rings_that_do_not_fit_are_refused(changes: dict[str, Any], why: str) -> None:
    with pytest.raises(UserError, match=why):
        config(**changes)
