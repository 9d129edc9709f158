"""CPC: loss and gradient against their definition, what a context may see, and what tells that it saw more."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from seer_pipe import config as settings
from seer_pipe.distributed.collectives import rank
from seer_pipe.errors import UserError
from seer_pipe.objectives.base import Moment
from seer_pipe.objectives.cpc.network import CpcHead, Predicted
from seer_pipe.objectives.cpc.objective import Cpc, own_places
from seer_pipe.train.build import build_network
from tests.distributed import run_ranks
from tests.host_sync import no_host_sync
from tests.objectives.embeddings import found
from tests.train.helpers import small

SIDE, IMAGES, DIM = 4, 3, 5
GRID = {"count": 1, "size": 16, "scale": [0.6, 1], "layout": "grid", "grid": {"side": SIDE, "patch": 1.6}}


def config(crops: list[dict[str, Any]] | None = None, norm: str = "layer", **objective: Any) -> settings.Config:
    return small(
        "unused",
        views={"crops": crops or [GRID], "augment": {"blur_p": 0}},
        model={"norm": norm},
        objective={"name": "cpc", "offsets": [2, 3], "hidden": 6, "dim": DIM, **objective},
    )


def predicted(offsets: list[int], seed: int = 0) -> Predicted:
    generator = torch.Generator().manual_seed(seed)

    def rows(patches: int) -> Tensor:
        drawn = torch.randn(patches * IMAGES, DIM, dtype=torch.float64, generator=generator)
        return (2 * drawn).requires_grad_()

    return Predicted(rows(SIDE**2), [rows((SIDE - offset) * SIDE) for offset in offsets])


def leaves(outputs: Predicted) -> list[Tensor]:
    return [outputs.targets, *outputs.predictions]


@pytest.mark.parametrize("offsets", [[1], [3, 1, 2]])
def test_loss_and_gradient_are_those_of_the_definition(offsets: list[int]) -> None:
    outputs = predicted(offsets)
    loss, metrics = Cpc(SIDE, offsets, True).loss(outputs, Moment(0, 100), log=True)
    gradients = torch.autograd.grad(loss, leaves(outputs))
    target = outputs.targets.view(SIDE, SIDE, IMAGES, DIM)
    everything = [(r, j, i) for r in range(SIDE) for j in range(SIDE) for i in range(IMAGES)]
    means, accuracies = [], []
    for offset, rows in zip(offsets, outputs.predictions, strict=True):
        prediction, losses, right = rows.view(SIDE - offset, SIDE, IMAGES, DIM), [], 0
        for row in range(SIDE - offset):
            for column in range(SIDE):
                for image in range(IMAGES):
                    own = (row + offset, column, image)
                    likely = {at: torch.exp(prediction[row, column, image] @ target[at] / 10) for at in everything}
                    losses.append(-torch.log(likely[own] / sum(likely.values())))
                    right += max(likely, key=lambda at: likely[at].item()) == own
        means.append(sum(losses) / len(losses))
        accuracies.append(right / len(losses))
    wanted = sum(means) / len(means)
    assert loss.item() == pytest.approx(wanted.item(), rel=1e-12)
    for mine, true in zip(gradients, torch.autograd.grad(wanted, leaves(outputs)), strict=True):
        torch.testing.assert_close(mine, true, rtol=1e-10, atol=1e-14)
    by_offset = dict(zip(offsets, accuracies, strict=True))
    assert float(metrics["nearest_row"]) == pytest.approx(by_offset[min(offsets)])
    assert float(metrics["farthest_row"]) == pytest.approx(by_offset[max(offsets)])
    assert float(metrics["pretext_accuracy"]) == pytest.approx(sum(accuracies) / len(accuracies))


def alone_and_together() -> tuple[float, float]:
    """The loss of a batch of this rank's own, without and with the patches of all ranks."""
    outputs = predicted([2, 3], seed=rank())
    without, together = (Cpc(SIDE, [2, 3], gather).loss(outputs, Moment(0, 100))[0] for gather in (False, True))
    return float(without), float(together)


@pytest.mark.slow
def test_without_gathering_a_rank_is_alone() -> None:
    for number, (without, together) in enumerate(run_ranks(2, alone_and_together)):
        loss, _ = Cpc(SIDE, [2, 3], True).loss(predicted([2, 3], seed=number), Moment(0, 100))
        assert without == loss.item() < together


@given(st.integers(2, 8), st.data())
def test_a_prediction_is_compared_with_the_patch_below_it(side: int, data: st.DataObject) -> None:
    """Among the patches of all ranks, as `gather_crops` joins them: crop by crop, each with the images of all ranks."""
    offset, images = data.draw(st.integers(1, side - 1)), data.draw(st.integers(1, 4))
    ranks = data.draw(st.integers(1, 4))
    own = data.draw(st.integers(0, ranks - 1))
    joined = [(row, column, owner, image) for row in range(side) for column in range(side)
              for owner in range(ranks) for image in range(images)]  # fmt: skip
    places = own_places(side, offset, images, ranks, own, torch.device("cpu")).tolist()
    assert [joined[place] for place in places] == [
        (row + offset, column, own, image)
        for row in range(side - offset) for column in range(side) for image in range(images)
    ]  # fmt: skip


def test_the_head_is_that_of_the_definition() -> None:
    """Convolutions written out tap by tap, maps as products."""
    width, hidden = 7, 6
    head = CpcHead(width, hidden, 2, DIM, [1, 2]).double()
    grid = torch.randn(SIDE, SIDE, IMAGES, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    outputs = head(grid)

    def tap(layer: Any, row: int, column: int, x: Tensor) -> Tensor:
        return x @ layer.weight[:, :, row, column].T

    nothing = torch.zeros(IMAGES, hidden, dtype=torch.float64)
    x = {(r, j): grid[r, j] for r in range(SIDE) for j in range(SIDE)}
    for number in range(2):
        block: Any = head.context[number]
        narrow = {at: (tap(block.narrow, 0, 0, value) + block.narrow.bias).relu() for at, value in x.items()}
        aside = {
            (r, j): sum(tap(block.aside, 0, k, narrow.get((r, j + k - 1), nothing)) for k in range(3))
            + block.aside.bias
            for r, j in x
        }
        above = {
            (r, j): tap(block.above, 0, 0, aside.get((r - 1, j), nothing)) + tap(block.above, 1, 0, aside[r, j])
            + block.above.bias
            for r, j in x
        }  # fmt: skip
        x = {at: x[at] + tap(block.widen, 0, 0, above[at].relu()) + block.widen.bias for at in x}
    targets = torch.cat([grid[at] @ head.target.weight.T + head.target.bias for at in x])
    torch.testing.assert_close(outputs.targets, targets)
    for offset, mapped, found_here in zip([1, 2], head.predict, outputs.predictions, strict=True):
        wanted = [tap(mapped, 0, 0, x[at].relu()) + mapped.bias for at in x if at[0] < SIDE - offset]
        torch.testing.assert_close(found_here, torch.cat(wanted))


def rows_that_change(norm: str, row: int) -> list[bool]:
    """Whether the predictions from each row are others after the patches of ``row`` are, in training mode."""
    network, generator = build_network(config(norm=norm, offsets=[1])).train(), torch.Generator().manual_seed(0)
    for parameter in network.head.parameters():  # some begin at zero
        torch.nn.init.normal_(parameter, 0, 0.3, generator=generator)
    crops = [torch.randn(IMAGES, 3, 16, 16, generator=generator) for _ in range(SIDE**2)]
    changed = [crop if at // SIDE != row else crop.flip(3) for at, crop in enumerate(crops)]
    with torch.no_grad():
        before, after = (network(some).predictions[0].unflatten(0, (SIDE - 1, -1)) for some in (crops, changed))
    return [not torch.equal(one, other) for one, other in zip(before, after, strict=True)]


def test_training_begins_at_the_loss_of_guessing() -> None:
    made = config()
    crops = [torch.randn(IMAGES, 3, 16, 16) for _ in range(SIDE**2)]
    loss, _ = Cpc(SIDE, [2, 3], True).loss(build_network(made)(crops), Moment(0, 100))
    assert loss.item() == pytest.approx(made.objective.chance_loss(made.views, IMAGES))


def test_a_context_sees_its_row_and_those_above() -> None:
    assert rows_that_change("layer", 2) == [False, False, True]
    assert rows_that_change("layer", 0) == [True, True, True]
    assert rows_that_change("layer", 3) == [False, False, False]


def test_by_batch_norm_it_sees_those_below() -> None:
    """The reason of model.norm: statistics over all patches of a batch are a way around the context."""
    assert rows_that_change("batch", 3) == [True, True, True]


@pytest.mark.parametrize("crops", [[{**GRID, "count": 2}], [GRID, GRID]])
def test_several_grids_are_refused(crops: list[dict[str, Any]]) -> None:
    with pytest.raises(UserError, match=r"objective cpc needs one grid of patches: a single group .* count 1$"):
        config(crops)


def test_offsets_that_a_grid_has_not_are_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.offsets 4: a grid of 4 rows has none so far down"):
        config(offsets=[2, 4])
    with pytest.raises(UserError, match=r"objective\.offsets names a row twice"):
        config(offsets=[2, 2])
    with pytest.raises(UserError, match=r"objective\.offsets\.0"):
        config(offsets=[0])


def test_what_gives_patches_away_is_told_before_a_run() -> None:
    def told(**changes: Any) -> list[str]:
        made = config(**changes)
        return made.objective.problems(made, 1000)

    assert told() == []
    (near,) = told(offsets=[1, 2])
    assert near.startswith("objective.offsets 1: patches in rows so near share pixels")
    (statistics,) = told(norm="batch")
    assert statistics.startswith("model.norm batch: ")


def test_chance_is_all_patches_of_the_batch() -> None:
    """A rank's own are as many as there are ranks, which the settings do not know."""
    made = config()
    assert made.objective.chance_loss(made.views, 8) == pytest.approx(math.log(SIDE**2 * 8))
    alone = config(gather=False)
    assert alone.objective.chance_loss(alone.views, 8) is None
    assert alone.objective.collectives(alone.views, 8, 2) == []
    assert alone.objective.memory(alone.views, 8, 2) < made.objective.memory(made.views, 8, 2)


def test_signs_name_a_leak_and_uniform_guesses() -> None:
    healthy = {"loss": 2.0, "loss_above_chance": -1.0, "farthest_row": 0.3}
    assert found(config().objective, healthy) == [False, False]
    assert found(config().objective, healthy | {"loss": 3.0, "loss_above_chance": -0.01}) == [True, False]
    assert found(config().objective, healthy | {"farthest_row": 0.95}) == [False, True]
    assert "model.norm: layer" in config().objective.signs()[1].advice


def step(device: str) -> None:
    targets, rows = (torch.randn(count * SIDE, DIM, device=device, requires_grad=True) for count in (SIDE, SIDE - 1))
    with no_host_sync(device):
        loss, _ = Cpc(SIDE, [1], True).loss(Predicted(targets, [rows]), Moment(0, 100))
        loss.backward()


def test_a_step_makes_the_host_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # meta has none
    step("meta")


@pytest.mark.gpu
def test_a_step_makes_the_host_wait_for_nothing_on_a_gpu() -> None:
    step("cuda")
