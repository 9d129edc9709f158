"""LARC and LARS against the published formula in float64, and sharded against whole."""

from collections.abc import Iterable
from copy import deepcopy
from typing import Any
from unittest.mock import patch

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from seer_pipe.optim.larc import Larc, Lars
from tests.distributed import run_ranks
from tests.host_sync import no_host_sync

SETTINGS = [
    {"weight_decay": 0.01},
    {"weight_decay": 0.0, "momentum": 0.0},
    {"weight_decay": 0.1, "clip": True, "trust": 0.5},
    {"weight_decay": 0.1, "exclude_1d": True},
    {"weight_decay": 0.1, "lars": True},
]


def optimizer_of(params: Iterable[nn.Parameter], exclude_1d: bool = False, lars: bool = False, **settings: Any) -> Larc:
    params = list(params)
    groups = [{"params": [p for p in params if p.ndim > 1 or not exclude_1d]}]
    if exclude_1d:
        groups.append({"params": [p for p in params if p.ndim == 1], "adapt": False, "weight_decay": 0.0})
    return (Lars if lars else Larc)(groups, lr=0.5, **settings)


def reference_step(
    p: Tensor,
    g: Tensor,
    buffer: Tensor,
    lr: float,
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    trust: float = 0.001,
    clip: bool = False,
    exclude_1d: bool = False,
    lars: bool = False,
) -> None:
    """One parameter by the book: apex's LARC around SGD whose own decay is off, or SimCLR's LARS."""
    if lars:
        g = g + weight_decay * p
        if p.norm() > 0 and g.norm() > 0:
            g = g * trust * p.norm() / g.norm()
    elif p.norm() > 0 and g.norm() > 0 and not (exclude_1d and p.ndim == 1):
        rate = trust * p.norm() / (g.norm() + weight_decay * p.norm() + 1e-8)
        if clip:
            rate = min(rate / lr, torch.ones_like(rate))
        g = (g + weight_decay * p) * rate
    buffer.mul_(momentum).add_(g)
    p.sub_(lr * buffer)


@pytest.mark.parametrize("settings", SETTINGS)
def test_equals_the_formula_in_float64(settings: dict) -> None:
    torch.manual_seed(0)
    shapes = [(7, 3), (5,), (4, 2, 3, 3), (6,), (3, 3)]
    params = [nn.Parameter(torch.randn(shape)) for shape in shapes]
    nn.init.zeros_(params[3])  # a zero weight, and below a zero gradient
    exact = [p.detach().double() for p in params]
    buffers = [torch.zeros_like(p) for p in exact]
    optimizer = optimizer_of(params, **settings)
    for step in range(6):
        lr = 0.5 / (step + 1)
        for group in optimizer.param_groups:
            group["lr"] = lr
        for index, p in enumerate(params):
            p.grad = torch.randn_like(p) if index != 4 or step % 2 else torch.zeros_like(p)
            reference_step(exact[index], p.grad.double(), buffers[index], lr, **settings)
        optimizer.step()
    for p, expected in zip(params, exact, strict=True):
        torch.testing.assert_close(p.detach().double(), expected, rtol=1e-6, atol=1e-6)


def test_parameters_without_gradient_are_left_alone_and_start_without_momentum() -> None:
    moving, frozen = nn.Parameter(torch.ones(3, 2)), nn.Parameter(torch.ones(3, 2))
    optimizer = Larc([moving, frozen], lr=1.0, weight_decay=0.1)
    moving.grad = torch.ones(3, 2)
    optimizer.step()
    assert torch.equal(frozen, torch.ones(3, 2))
    assert not torch.equal(moving, frozen)
    assert optimizer.state[frozen]["momentum_buffer"].eq(0).all()

    thawed = frozen.detach().double()
    frozen.grad = torch.full((3, 2), 2.0)
    reference_step(thawed, frozen.grad.double(), torch.zeros(3, 2).double(), 1.0, weight_decay=0.1)
    optimizer.step()
    torch.testing.assert_close(frozen.detach().double(), thawed, rtol=1e-6, atol=1e-7)


def test_groups_have_their_own_settings() -> None:
    params = [nn.Parameter(torch.full((2, 2), 2.0)) for _ in range(2)]
    groups = [{"params": params[:1], "lr": 0.0}, {"params": params[1:], "weight_decay": 0.5}]
    optimizer = Larc(groups, lr=2.0)
    expected = params[1].detach().double()
    for p in params:
        p.grad = torch.ones(2, 2)
    reference_step(expected, torch.ones(2, 2).double(), torch.zeros(2, 2).double(), 2.0, weight_decay=0.5)
    optimizer.step()
    assert torch.equal(params[0], torch.full((2, 2), 2.0))
    torch.testing.assert_close(params[1].detach().double(), expected)


def network() -> nn.Sequential:
    """Dimensions that two and three ranks do not divide, one smaller than the world, and a frozen last layer."""
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 7), nn.BatchNorm1d(7), nn.ReLU(), nn.Linear(7, 1), nn.Linear(1, 10))


def whole(tensor: Tensor) -> Tensor:
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.detach().clone()


def train_all(sharding: str) -> list[tuple[list[Tensor], list[Tensor], int]]:
    return [train(settings, sharding) for settings in SETTINGS]


def train(settings: dict, sharding: str) -> tuple[list[Tensor], list[Tensor], int]:
    """Weights and momentum after some steps on the same batch, and the number of collectives of a step."""
    model = network()
    if sharding == "hybrid":
        mesh = init_device_mesh("cpu", (2, dist.get_world_size() // 2), mesh_dim_names=("replicate", "shard"))
        fully_shard(model, mesh=mesh)
    elif sharding == "partly":  # norms stay whole beside sharded layers, as with FSDP's ignored_params
        fully_shard(model, ignored_params=set(model[1].parameters()))
    elif sharding == "full":
        fully_shard(model[0])
        fully_shard(model)
    optimizer = optimizer_of(model.parameters(), **settings)
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        model(torch.randn(16, 5, generator=generator)).square().mean().backward()
        model[4].weight.grad = None
        with patch.object(dist, "all_reduce", wraps=dist.all_reduce) as collective:
            optimizer.step()
        optimizer.zero_grad()
    params = list(model.parameters())
    momentum = [whole(optimizer.state[p]["momentum_buffer"]) for p in params]
    return [whole(p) for p in params], momentum, collective.call_count


@pytest.mark.parametrize(("world", "sharding"), [(1, "full"), (2, "full"), (3, "full"), (2, "partly"), (4, "hybrid")])
def test_sharded_equals_whole_with_one_collective(world: int, sharding: str) -> None:
    alone = train_all("none")
    for rank in run_ranks(world, train_all, sharding):
        for (weights, momentum, _), (own_weights, own_momentum, collectives) in zip(alone, rank, strict=True):
            torch.testing.assert_close(own_weights, weights, rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(own_momentum, momentum, rtol=1e-5, atol=1e-6)
            assert collectives == 1


def test_state_survives_the_way_through_a_checkpoint_also_of_a_frozen_parameter() -> None:
    model, other = network(), network()
    optimizer, fresh = (Larc(m.parameters(), lr=0.5, weight_decay=0.01) for m in (model, other))
    for p in list(model.parameters())[:-1]:
        p.grad = torch.randn_like(p)
    optimizer.step()
    other.load_state_dict(model.state_dict())
    state = deepcopy(get_optimizer_state_dict(model, optimizer))
    set_optimizer_state_dict(other, fresh, state)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        p.grad = torch.randn_like(p)
        q.grad = p.grad.clone()
    optimizer.step()
    fresh.step()
    assert all(torch.equal(p, q) for p, q in zip(model.parameters(), other.parameters(), strict=True))


def test_a_step_makes_the_host_wait_for_nothing() -> None:
    params = [nn.Parameter(torch.randn(3, 2, device="meta")), nn.Parameter(torch.randn(3, device="meta"))]
    optimizer = Larc(params, lr=0.5, weight_decay=0.1, clip=True)
    for p in params:
        p.grad = torch.randn_like(p)
    with no_host_sync("meta"):
        optimizer.step()


def overflow(kind: type[Larc], bad_rank: int) -> tuple[list[Tensor], list[Tensor], float]:
    """Parameters before and after a step in which one rank's gradient overflowed, and the scale after it."""
    model = network()
    fully_shard(model)
    optimizer = kind(model.parameters(), lr=0.5, weight_decay=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=16.0)
    before: list[Tensor] = []
    for step in range(2):
        batch = torch.randn(16, 5, generator=torch.Generator().manual_seed(step))
        scaler.scale(model(batch).square().mean()).backward()
        if step == 1:
            before = [whole(t) for p in model.parameters() for t in (p, optimizer.state[p]["momentum_buffer"])]
            if dist.get_rank() == bad_rank:
                model[3].weight.grad.to_local().fill_(torch.inf)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
    after = [whole(t) for p in model.parameters() for t in (p, optimizer.state[p]["momentum_buffer"])]
    return before, after, scaler.get_scale()


@pytest.mark.parametrize(("kind", "bad_rank"), [(Larc, 0), (Lars, 0), (Larc, 9)])
def test_a_step_that_overflowed_on_one_rank_moves_nothing_on_any(kind: type[Larc], bad_rank: int) -> None:
    for before, after, scale in run_ranks(2, overflow, kind, bad_rank):
        assert all(torch.equal(b, a) for b, a in zip(before, after, strict=True)) == (bad_rank == 0)
        assert scale == (8.0 if bad_rank == 0 else 16.0)


@pytest.mark.parametrize("kind", [Larc, Lars])
def test_scaled_gradients_take_the_same_step(kind: type[Larc]) -> None:
    results = []
    for scale in (1.0, 1024.0):
        model = network()
        optimizer = kind(model.parameters(), lr=0.5, weight_decay=0.1)
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        for step in range(3):
            batch = torch.randn(16, 5, generator=torch.Generator().manual_seed(step))
            scaler.scale(model(batch).square().mean()).backward()
            scaler.unscale_(optimizer)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
        results.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-7)
