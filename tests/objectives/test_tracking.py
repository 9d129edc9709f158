"""Ranking by tracks against its definition, triplet by triplet in float64, and which others tracks are told from."""

from collections import Counter
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from seer_pipe.errors import UserError
from seer_pipe.objectives.tracking.objective import Tracking
from seer_pipe.objectives.tracking.settings import TrackingSettings
from seer_pipe.train.telemetry import read_metrics
from tests.ingest.helpers import seer_ingest
from tests.ingest.shapes import clip, write_clips
from tests.objectives.embeddings import BATCH, alike, found, measured
from tests.objectives.moments import at
from tests.objectives.union import joined
from tests.train.helpers import small, train

DIM, HARD = 5, 600
SETTINGS = TrackingSettings(name="tracking", hard_after=HARD)


def distance(a: Tensor, b: Tensor) -> Tensor:
    return 1 - torch.dot(a, b) / (a.norm() * b.norm())


def reference(z: Tensor, others: list[list[int]]) -> Tensor:
    """Equations 1 and 2 of the paper, for those others (rows of z) of each track."""
    losses = [
        (distance(z[i], z[BATCH + i]) - distance(z[i], z[n]) + 0.5).clamp_min(0)
        for i, own in enumerate(others)
        for n in own
    ]
    return torch.stack(losses).mean()


def drawn(images: int, seed: int = 0) -> list[list[int]]:
    """The others of each track, as the objective draws them."""
    nothing = torch.zeros(BATCH, 2 * BATCH)
    return Tracking(SETTINGS, seed)._others(nothing, torch.arange(BATCH), at(images)).tolist()


def nearest(z: Tensor) -> list[list[int]]:
    """The four of the greatest loss."""
    found = []
    for i in range(BATCH):
        others = [n for n in range(2 * BATCH) if n % BATCH != i]
        found.append(sorted(others, key=lambda n, i=i: float(distance(z[i], z[n])))[:4])
    return found


@pytest.mark.parametrize("images", [0, 128, HARD - 1, HARD, 10 * HARD])
def test_loss_and_gradient_equal_the_paper(images: int) -> None:
    mine, published = (alike(2, DIM).requires_grad_() for _ in range(2))
    loss, _ = Tracking(SETTINGS, 0).loss(mine, at(images))
    expected = reference(published, drawn(images) if images < HARD else nearest(published.detach()))
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    torch.testing.assert_close(*torch.autograd.grad(loss, mine), *torch.autograd.grad(expected, published))


def test_others_are_drawn_evenly_and_of_seed_and_images_alone() -> None:
    counts: Counter[int] = Counter()
    for step in range(400):
        others = drawn(step)
        assert all(len(set(own)) == 4 and i not in {n % BATCH for n in own} for i, own in enumerate(others))
        for column in zip(*others, strict=True):  # of each of the four all tracks have different ones
            assert len(set(column)) == BATCH
        counts.update(others[0])
    assert len(counts) == 2 * (BATCH - 1)
    assert max(counts.values()) < 1.3 * min(counts.values())
    assert drawn(64) == drawn(64) != drawn(65)
    assert drawn(64) != drawn(64, seed=1)


def test_half_precision_outputs_are_compared_in_float32() -> None:
    rows = alike(2, DIM)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, metrics = Tracking(SETTINGS, 0).loss(rows.bfloat16(), at(0), log=True)
    assert loss.dtype == metrics["loss"].dtype == torch.float32
    torch.testing.assert_close(loss.double(), reference(rows.bfloat16().double(), drawn(0)), rtol=1e-6, atol=0)


def test_metrics_and_signs_tell_learning_from_collapse() -> None:
    track = torch.eye(BATCH)
    learnt, collapsed = (
        measured(Tracking(SETTINGS, 0), rows) for rows in (torch.cat([track, track]), torch.ones(2 * BATCH, DIM))
    )
    assert (learnt["top1"], learnt["loss"], learnt["misranked"]) == (1, 0, 0)
    assert learnt["positive_similarity"] == pytest.approx(1)
    assert learnt["negative_similarity"] == pytest.approx(0, abs=1e-6)
    assert collapsed["misranked"] == 1
    assert collapsed["loss"] == pytest.approx(0.5) == SETTINGS.chance_loss(small("unused").views, BATCH)
    assert found(SETTINGS, learnt) == [False, False]
    assert found(SETTINGS, collapsed) == [True, True]


def test_similarities_are_of_first_pictures_with_last_ones() -> None:
    rows = alike(2, DIM)
    first, last = F.normalize(rows, dim=1).chunk(2)
    cosines, values = first @ last.T, measured(Tracking(SETTINGS, 0), rows)
    others = cosines[~torch.eye(BATCH, dtype=torch.bool)]
    assert values["positive_similarity"] == pytest.approx(float(cosines.diagonal().mean()))
    assert values["negative_similarity"] == pytest.approx(float(others.mean()))


def test_what_cannot_be_is_said_in_a_line() -> None:
    def of(count: int = 2, **objective: int) -> None:
        views = {"crops": [{"count": count, "size": 24, "scale": [0.3, 1]}], "pictures": 2}
        small("unused", views=views, objective={"name": "tracking", **objective})

    with pytest.raises(UserError, match="tracking needs 2 crops per image, views has 3"):
        of(3)
    with pytest.raises(UserError, match=r"objective.negatives 15: a batch of 8 has 14 others"):
        of(negatives=15)
    of(negatives=14)


@pytest.mark.slow
@pytest.mark.learns
@pytest.mark.parametrize("hard_after", [0, 640])
def test_tracks_of_moving_discs_find_each_other(hard_after: int, tmp_path: Path) -> None:
    """From clips to a network: discs of 27 colours, of which each picture finds itself later among those of a batch."""
    colours = list(product((0, 127, 255), repeat=3))
    clips = [
        clip([lambda n, at=at: (40 + (3 + at % 2) * n, 50 + at)], radius=28, seed=10 * at, colour=colour)
        for at, colour in enumerate(colours)
    ]
    write_clips(tmp_path / "clips", clips)
    assert seer_ingest("tracks", tmp_path / "clips", "--frames", 20, "--out", tmp_path / "pairs").returncode == 0
    with joined():
        config = small(
            tmp_path / "pairs",
            model={"name": "tiny"},
            views={"crops": [{"count": 2, "size": 24, "scale": [0.5, 1]}], "pictures": 2,
                   "augment": {"jitter_p": 0, "grey_p": 0, "blur_p": 0}},
            objective={"name": "tracking", "head": {"hidden": [64], "dim": 32, "batch_norm": False},
                       "hard_after": hard_after},
            optimizer={"name": "adamw", "lr": 0.05, "warmup_images": 160},
            train={"batch": 16, "images": 1600, "checkpoint_every": 100},
        )  # fmt: skip
        assert train(config, tmp_path / "run", say=lambda _: None)
    losses = [row["loss"] for row in read_metrics(tmp_path / "run") if "loss" in row]
    assert np.mean(losses[-20:]) < np.mean(losses[:5]) / 2
