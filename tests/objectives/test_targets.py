"""SimSiam, BYOL, MoCo v2 and v3 against their papers' formulas written out in float64, image by image."""

import math
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from seer_pipe.config import Config, derive
from seer_pipe.distributed.world import World
from seer_pipe.objectives.base import Moment, Objective
from seer_pipe.objectives.heads import Prediction
from seer_pipe.objectives.momentum import MomentumOutput
from seer_pipe.objectives.settings import Setup
from seer_pipe.train import build
from seer_pipe.train.build import build_optimizer, outline, spread_network
from seer_pipe.train.health import Guard
from seer_pipe.train.step import TrainStep
from tests.distributed import run_ranks, whole
from tests.objectives.moments import at
from tests.train.helpers import small
from tests.train.test_step import ALONE, TinyTrunk

IMAGES, DIM, QUEUE = 6, 5, 20


def config(name: str, crops: int, **settings: Any) -> Config:
    return small(
        "unused",
        views={"crops": [{"count": crops, "size": 24, "scale": [0.3, 1]}]},
        objective={"name": name, "head": {"hidden": [8], "dim": DIM}, **settings},
        train={"batch": IMAGES, "images": 100 * IMAGES},
    )


def objective(name: str, crops: int, **settings: Any) -> Objective:
    made = config(name, crops, **settings)
    setup = Setup(made.views, 0, 100, torch.device("cpu"), IMAGES)
    return made.objective.objective(outline(made), setup)


def rows(crops: int, seed: int, images: int = IMAGES) -> Tensor:
    return torch.randn(crops * images, DIM, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def cosine(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum() / (a.square().sum().sqrt() * b.square().sum().sqrt())


def at_unit(a: Tensor) -> Tensor:
    return a / a.square().sum().sqrt()


def pairs(crops: int, targets: list[int]) -> list[tuple[int, int]]:
    """(predicting crop, target crop), in which a crop never is its own target."""
    return [(v, t) for t in targets for v in range(crops) if v != t]


def place(crop: int, image: int, images: int = IMAGES) -> int:
    return crop * images + image


@pytest.mark.parametrize(("crops", "targets"), [(2, [0, 1]), (4, [0, 1]), (3, [2])])
def test_simsiam(crops: int, targets: list[int]) -> None:
    """For two crops and targets: -(cos(p1, z2) + cos(p2, z1)) / 2, averaged over images."""
    z, p = rows(crops, 0).requires_grad_(), rows(crops, 1).requires_grad_()
    loss, _ = objective("simsiam", crops, targets=targets).loss(Prediction(z, p), at(0))
    terms = [-cosine(p[place(v, i)], z[place(t, i)].detach()) for v, t in pairs(crops, targets) for i in range(IMAGES)]
    assert_same(loss, torch.stack(terms).mean(), [p])
    loss.backward()
    assert z.grad is None  # targets pass no gradient


@pytest.mark.parametrize(("crops", "targets"), [(2, [0, 1]), (4, [0, 1])])
def test_byol(crops: int, targets: list[int]) -> None:
    """For two crops: |p1 - z2|^2 + |p2 - z1|^2 at unit norm, a sum and not a mean."""
    p, z = rows(crops, 0).requires_grad_(), rows(len(targets), 1)
    loss, _ = objective("byol", crops, targets=targets).loss(MomentumOutput(Prediction(rows(crops, 2), p), z), at(0))
    terms = [
        (at_unit(p[place(v, i)]) - at_unit(z[place(targets.index(t), i)])).square().sum()
        for v, t in pairs(crops, targets)
        for i in range(IMAGES)
    ]
    assert_same(loss, torch.stack(terms).sum() / (IMAGES * (crops - 1)), [p])


@pytest.mark.parametrize(("crops", "targets"), [(2, [1]), (2, [0, 1]), (4, [0, 1])])
def test_moco_v2_over_steps(crops: int, targets: list[int]) -> None:
    """The queue is used before the step's keys enter it, over the oldest, round its end."""
    moco = objective("moco_v2", crops, targets=targets, queue=QUEUE, temperature=0.2)
    queue = list(moco.state_dict()["queue"].double().unbind())
    assert all(key.norm().item() == pytest.approx(1, abs=1e-6) for key in queue)
    seen = [crop for crop in range(crops) if targets != [crop]]
    written = 0
    for step in range(4):
        q, k = rows(len(seen), 10 + step).requires_grad_(), rows(len(targets), 20 + step)
        loss, metrics = moco.loss(MomentumOutput(q, k), at(0), log=True)
        terms, found = [], []
        for v, t in pairs(crops, targets):
            for i in range(IMAGES):
                query = at_unit(q[place(seen.index(v), i)])
                own = query @ at_unit(k[place(targets.index(t), i)]) / 0.2
                others = [query @ key / 0.2 for key in queue]
                terms.append(-(own - torch.stack([own, *others]).logsumexp(0)))
                found.append(float(own > max(others)))
        assert_same(loss, torch.stack(terms).mean(), [q], 1e-6)  # the queue is kept in float32
        assert metrics["top1"].item() == pytest.approx(sum(found) / len(found))
        for i in range(IMAGES):
            for a in range(len(targets)):
                queue[written % QUEUE] = at_unit(k[place(a, i)])
                written += 1
        torch.testing.assert_close(moco.state_dict()["queue"].double(), torch.stack(queue), rtol=0, atol=1e-6)
        assert int(moco.state_dict()["next"]) == written % QUEUE


@pytest.mark.parametrize("crops", [2, 3])
def test_moco_v3(crops: int) -> None:
    """For two crops: 2 T (CE(q1, k2) + CE(q2, k1)), keys of other images are all that a query is told from."""
    q, k = rows(crops, 0).requires_grad_(), rows(2, 1)
    outputs = MomentumOutput(Prediction(rows(crops, 2), q), k)
    loss, _ = objective("moco_v3", crops, temperature=0.3).loss(outputs, at(0))
    terms = []
    for v, t in pairs(crops, [0, 1]):
        for i in range(IMAGES):
            query = at_unit(q[place(v, i)])
            cosines = torch.stack([query @ at_unit(k[place(t, j)]) / 0.3 for j in range(IMAGES)])
            terms.append(-2 * 0.3 * (cosines[i] - cosines.logsumexp(0)))
    assert_same(loss, torch.stack(terms).sum() / (IMAGES * (crops - 1)), [q])


def assert_same(loss: Tensor, expected: Tensor, inputs: list[Tensor], tolerance: float = 1e-10) -> None:
    torch.testing.assert_close(loss, expected, rtol=tolerance, atol=tolerance)
    wanted = torch.autograd.grad(expected, inputs)
    for mine, one in zip(torch.autograd.grad(loss, inputs, retain_graph=True), wanted, strict=True):
        torch.testing.assert_close(mine, one, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", ["simsiam", "byol"])
def test_collapse_is_seen(name: str) -> None:
    """All projections one: the spread is 0 and the signs say so; spread over the sphere, none does."""
    made = config(name, 2)
    for collapsed in (True, False):
        z, p = rows(2, 0, 512), rows(2, 1, 512)
        z = torch.ones_like(z) + 1e-3 * z if collapsed else z
        outputs: Any = Prediction(z, p)
        if name == "byol":
            outputs = MomentumOutput(outputs, z)
        _, metrics = objective(name, 2).loss(outputs, at(0), log=True)
        values = {key: value.item() for key, value in metrics.items()}
        assert (values["embedding_std"] < 0.01) == collapsed
        verdicts = [verdict for sign in made.objective.signs() if (verdict := sign.judge(values))]
        assert [healthy for healthy, _ in verdicts] == [not collapsed] * len(verdicts)


@pytest.mark.parametrize("name", ["moco_v2", "moco_v3"])
def test_queries_that_tell_nothing_apart_are_seen(name: str) -> None:
    queue = {"queue": QUEUE} if name == "moco_v2" else {}
    made, moco = config(name, 2, targets=[0, 1], **queue), objective(name, 2, targets=[0, 1], **queue)
    alike = torch.ones_like(rows(2, 0)) + 1e-3 * rows(2, 0)
    told: Any = alike if name == "moco_v2" else Prediction(alike, alike)
    for _ in range(3):  # the queue is full of them
        _, metrics = moco.loss(MomentumOutput(told, alike), at(0), log=True)
    values = {key: value.item() for key, value in metrics.items()}
    verdicts = [sign.judge(values) for sign in made.objective.signs()]
    assert any(verdict and not verdict[0] and "cosine with its own key" in verdict[1] for verdict in verdicts)


def chance(made: Config) -> float | None:
    return made.objective.chance_loss(made.views, made.train.batch)


def test_chance_is_the_loss_of_saying_nothing() -> None:
    made = config("byol", 2)
    p, z = torch.ones(2 * IMAGES, 2) * torch.tensor([1.0, 0.0]), torch.ones(2 * IMAGES, 2) * torch.tensor([0.0, 1.0])
    loss, _ = objective("byol", 2).loss(MomentumOutput(Prediction(z, p), z), at(0))
    assert loss.item() == pytest.approx(chance(made))
    loss, _ = objective("simsiam", 2).loss(Prediction(z, p), at(0))
    assert loss.item() == pytest.approx(chance(config("simsiam", 2)))
    moco = objective("moco_v2", 2, queue=QUEUE)
    moco.load_state_dict({"queue": torch.eye(DIM)[:1].repeat(QUEUE, 1), "next": torch.tensor(0)})
    same = torch.eye(DIM)[:1].repeat(IMAGES, 1)
    loss, _ = moco.loss(MomentumOutput(same, same), at(0))
    assert loss.item() == pytest.approx(math.log(QUEUE + 1))
    assert chance(config("moco_v2", 2, queue=QUEUE)) == pytest.approx(math.log(QUEUE + 1))
    v3 = objective("moco_v3", 2)
    loss, _ = v3.loss(MomentumOutput(Prediction(same.repeat(2, 1), same.repeat(2, 1)), same.repeat(2, 1)), at(0))
    assert loss.item() == pytest.approx(chance(config("moco_v3", 2)))


def trained(name: str, parallel: str) -> dict[str, Tensor]:
    """All state after some steps of a tiny trunk: the momentum copies' too, and the queue with its place."""
    batch, head = 8, {"hidden": [8], "dim": DIM}
    more = {"targets": [0, 1], "queue": 40} if name == "moco_v2" else {"momentum": {"start": 0.5, "batch": batch}}
    made = small(
        "unused",
        views={"crops": [{"count": 2, "size": 16, "scale": [0.3, 1]}, {"count": 1, "size": 12, "scale": [0.1, 0.3]}]},
        objective={"name": name, "head": head, **more},
        optimizer={"name": "sgd", "lr": 1.0, "warmup_images": 0},
        train={"batch": batch, "images": 10 * batch, "parallel": parallel},
    )
    ranked = dist.is_initialized()
    world = World(dist.get_rank(), dist.get_world_size(), torch.device("cpu")) if ranked else ALONE
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_trunk", lambda *_, **__: TinyTrunk())
        spread = spread_network(made, world)
    optimizer = build_optimizer(made.optimizer, spread.network)
    guard = Guard(spread.network, optimizer, spread.objective, world.device)
    step = TrainStep(made, derive(made, 1000, world.size), spread, optimizer, world, guard)
    generator = torch.Generator().manual_seed(0)
    for number in range(5):
        drawn = [torch.randn(batch, 3, size, size, generator=generator) for size in (16, 16, 12)]
        crops = [crop.chunk(world.size)[world.rank] for crop in drawn]
        step(crops, Moment(number * batch, 10 * batch), log=False)
    state = spread.network.state_dict() | spread.objective.state_dict()
    return {key: whole(tensor) for key, tensor in state.items()}


RANKED = [(name, parallel) for name in ("byol", "moco_v2") for parallel in ("ddp", "fsdp2")]


def trained_each() -> list[dict[str, Tensor]]:
    return [trained(*each) for each in RANKED]


def test_copies_and_queue_of_two_ranks_are_those_of_one_process() -> None:
    for (name, parallel), found in zip(RANKED, run_ranks(2, trained_each)[0], strict=True):
        alone = trained(name, "none")
        assert found.keys() == alone.keys()
        moved = [key for key in alone if key.startswith("copied_trunk") and key.endswith("weight")]
        assert any(not torch.equal(alone[key], alone[key.removeprefix("copied_")]) for key in moved)
        for key, tensor in alone.items():
            torch.testing.assert_close(found[key], tensor, rtol=1e-3, atol=1e-4, msg=f"{name} {parallel}: {key}")
    assert "queue" in alone
