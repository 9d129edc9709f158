"""NPID against its equations in float64, image by image; its constant; a run that other numbers of ranks continue."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seer_pipe.config import Config
from seer_pipe.objectives.base import Moment
from seer_pipe.objectives.instance_settings import mean_exponential
from seer_pipe.objectives.npid.objective import Npid
from seer_pipe.objectives.settings import Setup
from seer_pipe.run import start
from seer_pipe.train.build import outline
from seer_pipe.train.checkpoint import Checkpoints
from seer_pipe.train.committed import store_of
from seer_pipe.train.doctor import examine, supposed
from tests.distributed import run_ranks
from tests.objectives.runs import quiet
from tests.objectives.union import join, joined
from tests.train.helpers import losses, make_pictures, small, weights

IMAGES, DIM, SAMPLES, T = 4, 5, 12, 0.2


def config(crops: int = 2, pictures: Path | str = "unused", batch: int = IMAGES, **objective: Any) -> Config:
    return small(
        pictures,
        views={"crops": [{"count": crops, "size": 16, "scale": [0.3, 1]}], "augment": {"blur_p": 0.0}},
        model={"name": "tiny"},
        objective={"name": "npid", "head": {"hidden": [], "dim": DIM}, "negatives": 9, "temperature": T, **objective},
        optimizer={"name": "sgd", "lr": 0.5},
        train={"batch": batch, "images": 4 * batch, "checkpoint_every": 1, "keep": 100},
    )


@pytest.fixture(autouse=True, scope="module")
def _listed() -> Iterator[None]:
    with joined():
        yield


def objective(crops: int = 2, **changes: Any) -> Npid:
    made = config(crops, **changes)
    found = made.objective.objective(outline(made), Setup(made.views, 3, SAMPLES, torch.device("cpu"), IMAGES))
    assert isinstance(found, Npid)
    return found


def outputs(crops: int, step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(crops * IMAGES, DIM, generator=generator, dtype=torch.float64).requires_grad_()


def written_out(
    loss: str, z: Tensor, samples: list[int], rows: dict[int, Tensor], drawn: list[int], crops: int
) -> Tensor:
    """The loss of one step, by the equations; ``rows`` as they are before it."""
    z = z / z.norm(dim=1, keepdim=True)
    noise = SAMPLES * mean_exponential(DIM, T)  # Z
    terms = []
    for v in range(crops):
        for n, i in enumerate(samples):
            if i not in rows:
                continue
            others = [rows[j] for j in drawn if j in rows and j != i]
            e = [(z[v * IMAGES + n] @ row / T).exp() for row in (rows[i], *others)]
            if loss == "infonce":
                terms.append(-(e[0] / sum(e)).log())
                continue
            h = [p / noise / (p / noise + max(1, len(others)) / SAMPLES) for p in e]
            terms.append(-h[0].log() - sum(((1 - other).log() for other in h[1:]), torch.zeros(()).double()))
    return torch.stack(terms).mean() if terms else (0 * z).sum()


@pytest.mark.parametrize("crops", [1, 3])
@pytest.mark.parametrize("loss", ["infonce", "nce"])
def test_is_the_papers_loss_over_steps(loss: str, crops: int) -> None:
    npid = objective(crops, loss=loss)
    rows: dict[int, Tensor] = {}
    for step, samples in enumerate([[1, 5, 7, 2], [3, 7, 1, 7], [0, 1, 2, 11]]):
        z, moment = outputs(crops, step), Moment(IMAGES * step, 1000, torch.tensor(samples))
        found, metrics = npid.loss(z, moment, log=True)
        wanted = written_out(loss, z, samples, rows, npid._draw(moment).tolist(), crops)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)  # the bank is kept in float32
        mine, one = (torch.autograd.grad(value, z, retain_graph=True)[0] for value in (found, wanted))
        torch.testing.assert_close(mine, one, rtol=1e-5, atol=1e-8)
        assert metrics["remembered"].item() == pytest.approx(sum(i in rows for i in samples) / IMAGES)
        before = dict(rows)
        for n, i in reversed(list(enumerate(samples))):
            new = z[n].detach() / z[n].norm()
            moved = 0.5 * before[i] + 0.5 * new if i in before else new
            rows[i] = moved / moved.norm()


@pytest.mark.parametrize("crops", [1, 3])
def test_the_first_visit_only_writes(crops: int) -> None:
    npid, z = objective(crops), outputs(crops, 0)
    loss, _ = npid.loss(z, Moment(0, 1000, torch.arange(IMAGES)))
    loss.backward()
    assert loss == 0
    assert z.grad is not None
    assert not z.grad.any()
    assert npid.memory.share().any(1).sum() == IMAGES


def test_negatives_follow_from_seed_and_images_alone() -> None:
    one, other = objective(), objective()
    assert torch.equal(one._draw(Moment(64, 100)), other._draw(Moment(64, 1000)))
    assert not torch.equal(one._draw(Moment(64, 100)), one._draw(Moment(72, 100)))
    many = torch.cat([one._draw(Moment(step, 10**6)) for step in range(2000)])
    assert torch.bincount(many, minlength=SAMPLES).float().std() < 0.04 * len(many) / SAMPLES


@pytest.mark.parametrize(("dim", "temperature"), [(3, 0.3), (8, 0.2), (64, 0.1)])
def test_the_constant_is_that_of_random_directions(dim: int, temperature: float) -> None:
    """Against the density of a cosine, (1 - t²)^((dim - 3) / 2)."""
    t = torch.linspace(-1, 1, 200_001, dtype=torch.float64)
    density = (1 - t.square()) ** ((dim - 3) / 2)
    wanted = torch.trapezoid(density * (t / temperature).exp(), t) / torch.trapezoid(density, t)
    assert mean_exponential(dim, temperature) == pytest.approx(wanted.item(), rel=1e-6)


@pytest.mark.parametrize("loss", ["infonce", "nce"])
def test_chance_is_the_loss_at_right_angles(loss: str) -> None:
    npid = objective(1, loss=loss)
    none, all_ = torch.zeros(1, IMAGES, 1), torch.zeros(1, IMAGES, 9)
    found = npid.scored(none, all_, torch.ones(IMAGES, 9, dtype=torch.bool))
    chance = npid.settings.chance_loss(config(1).views, IMAGES)
    assert found.mean().item() == pytest.approx(chance, rel=1e-6)
    assert loss == "nce" or chance == pytest.approx(math.log(10))


def test_what_does_not_learn_is_seen() -> None:
    npid = objective(2)
    alike = torch.ones(2 * IMAGES, DIM) + 1e-3 * torch.randn(2 * IMAGES, DIM)
    for step in range(3):
        _, metrics = npid.loss(alike, Moment(step * IMAGES, 1000, torch.arange(IMAGES)), log=True)
    values = {name: value.item() for name, value in metrics.items()}
    told = [verdict for sign in npid.settings.signs() if (verdict := sign.judge(values))]
    assert "an image's cosine with its own row is 1.00, with those of others 1.00" in [
        text for ok, text in told if not ok
    ]


def test_the_doctor_tells_the_bank() -> None:
    """And finds it too large for GPUs that lack the room."""
    made = config(batch=64, head={"dim": 128}, bank={"dtype": "float16"})
    told = examine(made, supposed(made, 10**9), 32, gpu_memory=8)
    assert told["memory"]["kept_of_samples"] == pytest.approx(256 / 32, rel=1e-4)
    assert any("8.0 GB a GPU are needed" in problem for problem in told["problems"])


def as_ranks(pictures: str, run: str) -> None:
    join()
    made = config(pictures=pictures, batch=12)
    assert start(made.model_copy(update={"train": made.train.model_copy(update={"parallel": "fsdp2"})}), Path(run),
                 say=quiet)  # fmt: skip


@pytest.mark.slow
def test_a_bank_moves_between_numbers_of_ranks(tmp_path: Path) -> None:
    """Begun by one, continued by three, and by one again: losses and rows are those of one throughout."""
    pictures = make_pictures(tmp_path / "pictures", [13, 0, 1, 20])
    straight, moved = tmp_path / "straight", tmp_path / "moved"
    assert start(config(pictures=pictures, batch=12), straight, say=quiet)
    shutil.copytree(straight, moved)
    Checkpoints(store_of(moved)).give_up_after(1)
    run_ranks(3, as_ranks, str(pictures), str(moved))
    Checkpoints(store_of(moved)).give_up_after(3)
    assert start(config(pictures=pictures, batch=12), moved, say=quiet)
    one, other = losses(straight), losses(moved)
    assert max(abs(one[step] - other[step]) for step in one) < 1e-3
    rows = weights(straight)["objective/bank"], weights(moved)["objective/bank"]
    assert torch.equal(rows[0].any(2), rows[1].any(2))
    torch.testing.assert_close(*rows, rtol=0, atol=1e-2)
