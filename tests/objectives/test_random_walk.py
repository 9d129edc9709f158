"""Walks over patches against their definition in float64, the edges they lack, and that clips teach them to return."""

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seer_pipe.config import Views
from seer_pipe.errors import UserError
from seer_pipe.evaluate.propagation import Carrying, evaluate_propagation
from seer_pipe.objectives.random_walk.edges import dropped
from seer_pipe.objectives.random_walk.objective import RandomWalk
from seer_pipe.objectives.random_walk.settings import RandomWalkSettings
from seer_pipe.train.telemetry import read_metrics
from tests.davis import write_davis
from tests.ingest.helpers import seer_ingest
from tests.objectives.embeddings import found, measured
from tests.objectives.moments import at
from tests.objectives.moving import scene, write_videos
from tests.objectives.union import joined
from tests.train.helpers import small, train

FRAMES, PATCHES, CLIPS, DIM = 4, 5, 3, 6
SETTINGS = RandomWalkSettings(name="random_walk", temperature=0.5)
CPU = torch.device("cpu")
GRID = {"count": 1, "size": 16, "scale": [0.9, 1.0], "layout": "grid", "grid": {"patch": 0.9, "scale": [0.7, 0.9]}}


def walk(settings: RandomWalkSettings = SETTINGS, seed: int = 0) -> RandomWalk:
    return RandomWalk(settings, FRAMES, PATCHES, seed)


def rows(frames: int = FRAMES) -> Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.randn(frames * PATCHES * CLIPS, DIM, generator=generator, dtype=torch.float64)


def edges(images: int, share: float, seed: int = 0) -> Tensor:
    return dropped(seed, images, (CLIPS, 2, FRAMES - 1, PATCHES, PATCHES), share, CPU)


def reference(z: Tensor, closed: Tensor) -> Tensor:
    """Equation 4 of the paper path by path, over the palindromes and with the cross entropy of its code."""
    losses = []
    for clip in range(CLIPS):
        q = [
            F.normalize(torch.stack([z[(t * PATCHES + i) * CLIPS + clip] for i in range(PATCHES)]), dim=1)
            for t in range(FRAMES)
        ]

        def step(a: Tensor, b: Tensor, shut: Tensor) -> Tensor:
            likes = torch.exp(a @ b.T / 0.5) * ~shut
            return likes / likes.sum(1, keepdim=True)

        out = [step(q[t], q[t + 1], closed[clip, 0, t]) for t in range(FRAMES - 1)]
        back = [step(q[t + 1], q[t], closed[clip, 1, t]) for t in range(FRAMES - 1)]
        two = torch.einsum("ab,bc,cd,de->ae", out[0], out[1], back[1], back[0])
        three = torch.einsum("ab,bc,cd,de,ef,fg->ag", out[0], out[1], out[2], back[2], back[1], back[0])
        losses += [F.cross_entropy(torch.log(ends + 1e-20), torch.arange(PATCHES)) for ends in (two, three)]
    return torch.stack(losses).mean()


@pytest.mark.parametrize("edge_drop", [0.0, 0.1, 0.3])
def test_loss_and_gradient_equal_the_paper(edge_drop: float) -> None:
    mine, published = (rows().requires_grad_() for _ in range(2))
    objective = walk(SETTINGS.model_copy(update={"edge_drop": edge_drop}), seed=7)
    loss, metrics = objective.loss(mine, at(40))
    expected = reference(published, edges(40, edge_drop, seed=7))
    assert not metrics
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(*torch.autograd.grad(loss, mine), *torch.autograd.grad(expected, published))


def test_a_patch_without_any_edge_may_go_anywhere() -> None:
    loss, _ = walk(SETTINGS.model_copy(update={"edge_drop": 0.999})).loss(rows().float(), at(0))
    assert float(loss) == pytest.approx(np.log(PATCHES), rel=0.1)


def test_edges_are_dropped_evenly_and_of_seed_and_clip_alone() -> None:
    shape = (4000, 2, 2, 3, 3)
    drawn = dropped(3, 0, shape, 0.1, CPU)
    each = drawn.double().mean(0)
    assert each.mean() == pytest.approx(0.1, abs=0.002)
    assert (each - 0.1).abs().max() < 0.02  # four deviations
    pairs = np.corrcoef(drawn.flatten(1).double().numpy().T) - np.eye(36)
    assert np.abs(pairs).max() < 0.08
    later = drawn[1:].flatten(1).double() - 0.1
    assert abs(float((later * (drawn[:-1].flatten(1).double() - 0.1)).mean()) / 0.09) < 0.02
    assert torch.equal(dropped(3, 100, (50, *shape[1:]), 0.1, CPU), drawn[100:150])
    far = dropped(3, 2**32, shape, 0.1, CPU)
    for other in (far, dropped(4, 0, shape, 0.1, CPU)):
        assert (other & drawn).double().mean() == pytest.approx(0.01, abs=0.002)
    assert not dropped(3, 0, shape, 0.0, CPU).any()


def test_half_precision_outputs_are_compared_in_float32() -> None:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, metrics = walk().loss(rows().bfloat16(), at(0), log=True)
    assert loss.dtype == metrics["loss"].dtype == torch.float32
    torch.testing.assert_close(loss.double(), reference(rows().bfloat16().double(), edges(0, 0.1)), rtol=1e-5, atol=0)


def test_metrics_and_signs_tell_learning_from_what_is_too_easy_and_from_collapse() -> None:
    """Patches may change their places, but where those of the last frame are all one, the longest walk is lost."""
    sharp = RandomWalkSettings(name="random_walk", edge_drop=0)
    own = torch.eye(PATCHES)[:, None].expand(-1, CLIPS, -1)
    easy = torch.stack([own, own, own, own.roll(1, 0)]).flatten(0, 2)
    lost = torch.stack([own, own, own, own[:1].expand_as(own)]).flatten(0, 2)
    chance = SETTINGS.chance_loss(views(side=3), 1)
    assert chance == pytest.approx(np.log(9))
    one, part, none = (measured(walk(sharp), z.clone()) for z in (easy, lost, torch.ones(len(easy), DIM)))
    assert (one["cycle_accuracy"], one["shortest_cycle"]) == (1, 1)
    assert part["shortest_cycle"] == 1
    assert part["cycle_accuracy"] == pytest.approx(1 / PATCHES)
    assert none["loss"] == pytest.approx(np.log(PATCHES))
    above = {"loss_above_chance": 0.0}
    assert found(sharp, none | above) == [True, False, True]
    assert found(sharp, one | {"loss_above_chance": -1.0}) == [False, True, False]
    assert found(sharp, one | {"loss_above_chance": -1.0, "cycle_accuracy": 0.9}) == [False, False, False]


def views(frames: int | None = 4, count: int = 1, side: int = 3) -> Views:
    group = GRID | {"count": count, "grid": {"side": side}}
    tree = {"crops": [group], "frames": None if frames is None else {"count": frames}}
    return small("unused", views=tree, objective={"name": "random_walk"}).views


def test_what_cannot_be_is_said_in_a_line() -> None:
    assert views().count == 36
    with pytest.raises(UserError, match=r"random_walk needs 3 frames of a clip or more \(views.frames\), views has 2"):
        views(2)
    with pytest.raises(UserError, match=r"random_walk needs 3 frames .* views has 1"):
        views(None)
    with pytest.raises(UserError, match=r"random_walk needs one grid of patches"):
        views(count=2)
    with pytest.raises(UserError, match=r"random_walk needs views.crops of layout grid"):
        small("unused", views={"frames": {"count": 4}}, objective={"name": "random_walk"})


@pytest.mark.slow
@pytest.mark.learns
def test_walks_through_moving_discs_return(tmp_path: Path) -> None:
    """From videos to a network, through the ingest; nine patches a frame, so chance is one in nine. And what is
    learnt so follows discs through other videos."""
    videos = write_videos(tmp_path / "videos", 32)
    done = seer_ingest("folder", videos, "--media", "video", "--out", tmp_path / "clips")
    assert done.returncode == 0, done.stderr
    with joined():
        config = small(
            tmp_path / "clips",
            model={"name": "tiny"},
            views={"crops": [GRID], "frames": {"count": 4, "fps": 8},
                   "augment": {"flip": 0, "jitter_p": 0, "grey_p": 0, "blur_p": 0}},
            objective={"name": "random_walk", "dim": 32, "edge_drop": 0.0},
            optimizer={"name": "adamw", "lr": 0.5, "warmup_images": 160},
            train={"batch": 16, "images": 1600, "checkpoint_every": 100},
        )  # fmt: skip
        assert train(config, tmp_path / "run", say=lambda _: None)
        davis = write_davis(tmp_path / "davis", "discs", scene(101, frames=10))
        untrained, trained = (
            evaluate_propagation(tmp_path / "run", davis, Carrying(context=3), stage="2", untrained=first)
            for first in (True, False)
        )
    metrics = [row for row in read_metrics(tmp_path / "run") if "cycle_accuracy" in row]
    accuracies, losses = ([row[name] for row in metrics] for name in ("cycle_accuracy", "loss"))
    assert np.mean(accuracies[-20:]) > 0.9
    assert np.mean(losses[-20:]) < np.mean(losses[:5]) / 2
    assert trained is not None
    assert untrained is not None
    assert trained["j_and_f"] > untrained["j_and_f"] + 0.05
