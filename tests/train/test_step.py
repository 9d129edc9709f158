"""A training step in every combination of what it can be: FSDP2 ranks against one process, in float32."""

import os
from contextlib import nullcontext
from typing import Any, ClassVar

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._dynamo.utils import counters
from torch.optim import Optimizer

from seer_pipe import config as settings
from seer_pipe.distributed.world import World
from seer_pipe.errors import UserError
from seer_pipe.models import Trunk
from seer_pipe.train import build
from seer_pipe.train.build import build_optimizer, spread_network
from seer_pipe.train.health import Guard
from seer_pipe.train.step import TrainStep, clip_gradient
from tests.distributed import run_ranks, whole
from tests.host_sync import no_host_sync
from tests.objectives.moments import at
from tests.train.helpers import small

BATCH = 16
ALONE = World(0, 1, torch.device("cpu"))
EVERYTHING = {
    "crops": 4, "sync_bn": True, "optimizer": "larc", "queue": True, "activation_checkpointing": True, "accumulate": 2,
}  # fmt: skip
NOTHING = {
    "crops": 2, "sync_bn": False, "optimizer": "sgd", "queue": False, "activation_checkpointing": False,
    "accumulate": 1,
}  # fmt: skip


def recipe(choice: dict[str, Any], **train: Any) -> settings.Config:
    crops = [{"count": 2, "size": 16, "scale": [0.3, 1]}, {"count": 2, "size": 8, "scale": [0.1, 0.3]}]
    return small(
        "unused",
        views={"crops": crops if choice["crops"] == 4 else crops[:1]},
        objective={"queue": 2 * BATCH if choice["queue"] else 0, "queue_start_images": BATCH,
                   "freeze_images": 2 * BATCH, "head": {"hidden": [16], "dim": 8}},
        optimizer={"name": choice["optimizer"], "lr": 0.5, "warmup_images": BATCH, "weight_decay": 1e-4,
                   **choice.get("optimizing", {})},
        train={"batch": BATCH, "images": 20 * BATCH, "sync_bn": choice["sync_bn"], "accumulate": choice["accumulate"],
               "activation_checkpointing": choice["activation_checkpointing"], **train},
    )  # fmt: skip


class TinyTrunk(Trunk):
    """Two residual blocks behind a stem: what a trunk is, small enough for a matrix of runs."""

    name, stem_kind, width, stages = "tiny", "imagenet", 8, ((8, 1), (8, 1))
    conv: ClassVar[Any] = nn.Conv2d
    norm: ClassVar[Any] = nn.BatchNorm2d

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = self.conv(channels, 8, 3, 2, 1, bias=False)
        self.residual = nn.ModuleList(
            nn.Sequential(self.norm(8), nn.ReLU(), self.conv(8, 8, 3, 1, 1, bias=False)) for _ in range(2)
        )

    def blocks(self) -> list[nn.Module]:
        return list(self.residual)

    def feature_map(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.residual:
            x = x + block(x)
        return x


class TinyClipTrunk(TinyTrunk):
    """The same of clips."""

    name, takes_clips = "tiny_clips", True
    conv: ClassVar[Any] = nn.Conv3d
    norm: ClassVar[Any] = nn.BatchNorm3d


def crops_of(step: int, config: settings.Config, rank: int, world: int, like: int) -> list[Tensor]:
    """This rank's crops. One process alone takes the images in the order in which ``like`` ranks' pieces come."""
    generator = torch.Generator().manual_seed(step)
    sizes = [crop.size for crop in config.views.crops for _ in range(crop.count)]
    order = torch.arange(BATCH).view(like, config.train.accumulate, -1).transpose(0, 1).flatten()
    crops = [torch.randn(BATCH, 3, s, s, generator=generator) for s in sizes]
    return [crop[order] if world == 1 else crop.chunk(world)[rank] for crop in crops]


def guard(made: Any, optimizer: Optimizer) -> Guard:
    return Guard(made.network, optimizer, made.objective, torch.device("cpu"))


def assert_channels_last(_module: nn.Module, _inputs: Any, output: Tensor) -> None:
    assert output.is_contiguous(memory_format=torch.channels_last)
    assert not output.is_contiguous()


def run(
    choice: dict[str, Any], train: dict[str, Any], steps: int, like: int = 1
) -> tuple[list[float], dict[str, Tensor], int]:
    """The losses of some steps, the network after them, and how many programs were compiled after the first."""
    world = dist.get_world_size() if dist.is_initialized() else 1
    here = World(dist.get_rank() if world > 1 else 0, world, torch.device("cpu"))
    config = recipe(choice, **train)
    derived = settings.derive(config, 1000, world)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(build, "build_trunk", lambda *_, **__: TinyTrunk())
        made = spread_network(config, here)
    if config.train.channels_last is True:
        for block in made.network.trunk.blocks():
            block.register_forward_hook(assert_channels_last)
    optimizer = build_optimizer(config.optimizer, made.network)
    step = TrainStep(config, derived, made, optimizer, here, guard(made, optimizer))
    losses, programs = [], 0
    for number in range(steps):
        told = step(crops_of(number, config, here.rank, world, like), at(number * BATCH), log=True)
        losses.append(float(told["loss"]))
        programs = programs or counters["stats"]["unique_graphs"]
    later = counters["stats"]["unique_graphs"] - programs
    return losses, {name: whole(tensor) for name, tensor in made.network.state_dict(keep_vars=True).items()}, later


#: A shift before a BatchNorm has no gradient but what rounding leaves of it, which LARC stretches to a full step.
WITHOUT_GRADIENT = ("head.projection.0.bias", "head.projection.1.running_mean")


def assert_equal(one: tuple[Any, ...], other: tuple[Any, ...], tolerance: float = 1e-5) -> None:
    """Losses and weights within ``tolerance``; `WITHOUT_GRADIENT` within twice that."""
    assert max(abs(a - b) for a, b in zip(one[0], other[0], strict=True)) <= tolerance
    for name, tensor in one[1].items():
        allowed = 2 * tolerance if name in WITHOUT_GRADIENT else tolerance
        torch.testing.assert_close(
            other[1][name], tensor, rtol=allowed, atol=allowed, msg=lambda text, name=name: f"{name}: {text}",
        )  # fmt: skip


Result = tuple[list[float], dict[str, Tensor], int]


def run_each(choices: list[dict[str, Any]], steps: int) -> list[tuple[Result, Result | None]]:
    """FSDP2's result of each choice and, where ranks have BatchNorms of their own, DDP's."""
    sharded = [run(choice, {"parallel": "fsdp2", **choice.get("sharded", {})}, steps) for choice in choices]
    alone = [None if choice["sync_bn"] else run(choice, {"parallel": "ddp"}, steps) for choice in choices]
    return list(zip(sharded, alone, strict=True))


def compare(choices: list[dict[str, Any]], world: int, steps: int) -> None:
    """FSDP2 on some ranks against one process; where ranks have BatchNorms of their own, against DDP."""
    ranks = run_ranks(world, run_each, choices, steps)
    for choice, of_ranks in zip(choices, zip(*ranks, strict=True), strict=True):
        alone = run(choice, {}, steps, world) if choice["sync_bn"] else None
        for sharded, replicated in of_ranks:
            assert_equal(alone or replicated, sharded)
        assert abs(of_ranks[0][0][0][0] - of_ranks[0][0][0][-1]) > 0.01  # what is compared has moved


CLIPPED = NOTHING | {
    "sync_bn": True, "optimizing": {"clip_norm": 0.05, "weight_decay": 0.1, "final_weight_decay": 0.0},
    "sharded": {"channels_last": True},
}  # fmt: skip


def test_fsdp2_equals_one_process_with_everything_on() -> None:
    """The second also against the other memory layout, in which weights are sharded contiguous."""
    compare([EVERYTHING, CLIPPED], 2, 5)


def test_the_gradient_is_shortened_and_the_decay_follows_its_schedule() -> None:
    config = recipe(CLIPPED | {"optimizing": {"clip_norm": 0.05, "final_weight_decay": 0.01, "exclude": ["norm"]}})
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(build, "build_trunk", lambda *_, **__: TinyTrunk())
        made = spread_network(config, ALONE)
    optimizer = build_optimizer(config.optimizer, made.network)
    step = TrainStep(config, settings.derive(config, 1000), made, optimizer, ALONE, guard(made, optimizer))
    told = step(crops_of(0, config, 0, 1, 1), at(10 * BATCH), log=True)
    found = torch.cat([p.grad.flatten() for p in made.network.parameters() if p.grad is not None])
    assert float(told["grad_norm"]) > 0.1
    assert float(found.norm()) == pytest.approx(0.05, rel=1e-3)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [pytest.approx((1e-4 + 0.01) / 2), 0.0]


def test_a_gradient_that_is_short_enough_stays() -> None:
    layer = nn.Linear(3, 2)
    layer.weight.grad = torch.full_like(layer.weight, 0.1)
    before = layer.weight.grad.clone()
    clip_gradient(layer, before.norm(), 1.0)
    torch.testing.assert_close(layer.weight.grad, before, rtol=0, atol=0)


SWITCHES = [EVERYTHING, NOTHING, *(EVERYTHING | {switch: off} for switch, off in NOTHING.items())]


WITHOUT_SYNC_BN = EVERYTHING | {"sync_bn": False}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "choices"),
    [(2, SWITCHES[::2]), (2, SWITCHES[1::2]), (4, [EVERYTHING, NOTHING]), (4, [WITHOUT_SYNC_BN])],
    ids=["two ranks, some", "two ranks, others", "four ranks", "four ranks, BatchNorms of their own"],
)
def test_fsdp2_equals_one_process_over_twenty_steps(choices: list[dict[str, Any]], world: int) -> None:
    """Everything on, everything off, and on two ranks each off alone."""
    compare(choices, world, 20)


@pytest.mark.slow
def test_hybrid_sharding_equals_full_sharding() -> None:
    full, hybrid = (run_ranks(4, run, EVERYTHING, {"parallel": "fsdp2"} | t, 3)[1] for t in ({}, {"shard_within": 2}))
    assert_equal(full, hybrid, 1e-6)


def test_checkpointing_changes_nothing_whatever_the_stages() -> None:
    plain = EVERYTHING | {"activation_checkpointing": False}
    expected = run(plain, {}, 3)
    for stages in (True, [2], [1, 2]):
        assert_equal(expected, run(plain | {"activation_checkpointing": stages}, {}, 3), 0)
    assert expected[1]["trunk.residual.0.0.num_batches_tracked"] == 3 * 2  # steps, resolutions


def test_pieces_are_exact_where_batchnorm_does_not_see_them() -> None:
    """Without BatchNorm in the way (its own statistics in evaluation) pieces give the gradient of the whole batch."""
    results = []
    for pieces in (1, 2, 8):
        config = recipe(EVERYTHING | {"accumulate": pieces}, threads=1)
        with pytest.MonkeyPatch.context() as monkeypatch:
            monkeypatch.setattr(build, "build_trunk", lambda *_, **__: TinyTrunk())
            made = spread_network(config, ALONE)
        made.network.eval()
        optimizer = build_optimizer(config.optimizer, made.network)
        step = TrainStep(config, settings.derive(config, 1000), made, optimizer, ALONE,
                         guard(made, optimizer))  # fmt: skip
        losses = []
        for number in range(6):
            crops = crops_of(number, config, 0, 2, 1) + crops_of(number, config, 1, 2, 1)
            whole_batch = [torch.cat([crops[i], crops[i + len(crops) // 2]]) for i in range(len(crops) // 2)]
            losses.append(float(step(whole_batch, at(number * BATCH), log=True)["loss"]))
        results.append((losses, dict(made.network.state_dict())))
    assert_equal(results[0], results[1], 1e-6)
    assert_equal(results[0], results[2], 1e-6)


def test_pieces_must_be_equal_and_hold_two_images() -> None:
    for pieces, images in ((3, 16), (16, 16)):
        config = recipe(EVERYTHING | {"accumulate": pieces})
        derived = settings.derive(config, 1000)
        with pytest.raises(UserError, match=f"train.accumulate {pieces}: must cut a rank's {images} images"):
            build.check_world(derived, config.train, ALONE)


def statistics(sync_bn: Any) -> list[float]:
    """The running means of a SyncBatchNorm's first channel when rank r of four has inputs around r, two images."""
    train = settings.Train.model_validate({"batch": 8, "sync_bn": sync_bn})
    ranks, slices = build.syncbn.groups(train, dist.get_world_size())
    assert slices is None
    group = build.ranks_in_step(ranks, World(dist.get_rank(), dist.get_world_size(), torch.device("cpu")))
    norm = nn.BatchNorm1d(1, momentum=1.0)
    build.syncbn.convert(norm, group)
    norm(torch.tensor([[-1.0], [1.0]]) + dist.get_rank())
    return norm.running_mean.tolist()


PAIRS = [0.5, 0.5, 2.5, 2.5]


@pytest.mark.parametrize(("sync_bn", "means"), [(True, [1.5] * 4), (2, PAIRS), (8, [1.5] * 4), ({"images": 4}, PAIRS)])
def test_batchnorm_over_groups_of_ranks(sync_bn: Any, means: list[float]) -> None:
    assert [mean for (mean,) in run_ranks(4, statistics, sync_bn)] == means


def refused(train: dict[str, Any]) -> str:
    try:
        spread_network(recipe(EVERYTHING, **train), World(dist.get_rank(), dist.get_world_size(), torch.device("cpu")))
    except UserError as error:
        return str(error)
    return ""


def test_what_does_not_divide_is_refused() -> None:
    assert "3 ranks are no whole number of groups of 2" in run_ranks(3, refused, {"shard_within": 2})[0]
    assert "3 ranks are no whole number of such groups" in run_ranks(3, refused, {"sync_bn": 2})[0]


def test_compiled_blocks_equal_plain_ones_and_compile_only_in_the_first_step(monkeypatch: pytest.MonkeyPatch) -> None:
    plain = run(EVERYTHING, {}, 3)
    compiler = torch.compile
    monkeypatch.setattr(torch, "compile", lambda f, **kw: compiler(f, backend="aot_eager", **kw))
    compiled = run(EVERYTHING, {"compile": True}, 3)
    assert counters["stats"]["unique_graphs"] >= 4  # resolutions, with and without gradient; 2.13: a block its own
    assert compiled[2] == 0
    assert_equal(plain, compiled, 1e-5)


@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="tensors of a CPU")
def test_fused_batchnorm_and_relu_equal_both() -> None:
    """In Triton's interpreter, which is slow: one step, of a network whose blocks are recomputed."""
    choice = EVERYTHING | {"accumulate": 1}
    assert_equal(run(choice, {}, 1), run(choice, {"fused_bn": True, "channels_last": True}, 1), 1e-5)


@pytest.mark.slow
@pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="tensors of a CPU")
def test_fused_sharded_and_synchronous_together() -> None:
    compare([EVERYTHING | {"accumulate": 1, "sharded": {"channels_last": True, "fused_bn": True}}], 2, 3)


def compiled_rank() -> tuple[Any, ...]:
    compiler = torch.compile
    torch.compile = lambda f, **kw: compiler(f, backend="aot_eager", **kw)
    return run(EVERYTHING, {"compile": True, "parallel": "fsdp2"}, 3)


@pytest.mark.slow
def test_compiled_sharded_synchronous_and_checkpointed_together() -> None:
    expected = run(EVERYTHING, {}, 3, 2)
    for rank in run_ranks(2, compiled_rank):
        assert_equal(expected, rank)
        assert rank[2] == 0


def half(precision: str, **train: Any) -> tuple[list[float], dict[str, torch.dtype]]:
    config = recipe(EVERYTHING | {"accumulate": 1}, precision=precision, **train)
    world = dist.get_world_size() if dist.is_initialized() else 1
    here = World(dist.get_rank() if world > 1 else 0, world, torch.device("cpu"))
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr(build, "build_trunk", lambda *_, **__: TinyTrunk())
        made = spread_network(config, here)
    seen: dict[str, torch.dtype] = {}
    block = made.network.trunk.blocks()[0]
    block.register_forward_hook(lambda _m, _i, out: seen.__setitem__("block", out.dtype))
    made.objective.head.register_forward_hook(lambda _m, _i, out: seen.__setitem__("scores", out.scores.dtype))
    optimizer = build_optimizer(config.optimizer, made.network)
    derived = settings.derive(config, 1000, world)
    step = TrainStep(config, derived, made, optimizer, here, guard(made, optimizer))
    losses = []
    for number in range(3):
        told = step(crops_of(number, config, here.rank, world, 1), at(number * BATCH), log=True)
        seen["loss"] = told["loss"].dtype
        losses.append(float(told["loss"]))
    seen |= {name: t.dtype for name, t in made.network.state_dict().items() if name.endswith(("running_var", "weight"))}
    return losses, seen


@pytest.mark.parametrize(("precision", "dtype"), [("bf16", torch.bfloat16), ("fp16", torch.float16)])
def test_half_precision_stays_in_the_network(precision: str, dtype: torch.dtype) -> None:
    """Losses near float32's; statistics, weights, prototypes' scores and the loss are float32."""
    full, _ = half("fp32")
    losses, seen = half(precision)
    assert seen.pop("block") == dtype
    assert set(seen.values()) == {torch.float32}
    assert losses == pytest.approx(full, abs=0.05)
    assert losses != full
    for sharded, _ in run_ranks(2, half, precision):
        assert sharded == pytest.approx(losses, abs=0.1)


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_a_step_on_a_gpu_makes_the_host_wait_for_nothing(precision: str) -> None:
    gpu = World(0, 1, torch.device("cuda"))
    config = recipe(EVERYTHING | {"accumulate": 1}, precision=precision, device="cuda")
    made = spread_network(config, gpu)
    optimizer = build_optimizer(config.optimizer, made.network)
    step = TrainStep(config, settings.derive(config, 1000), made, optimizer, gpu,
                     Guard(made.network, optimizer, made.objective, gpu.device))  # fmt: skip
    for number in range(4):
        crops = [crop.cuda() for crop in crops_of(number, config, 0, 1, 1)]
        with no_host_sync("cuda") if number > 1 else nullcontext():
            step(crops, at(number * BATCH), log=False)
    assert all(parameter.isfinite().all() for parameter in made.network.parameters())


@pytest.mark.parametrize("norm", ["batch", "layer"])
def test_exclusions_have_neither_decay_nor_an_adapted_rate(norm: Any) -> None:
    config = recipe(EVERYTHING).model_copy(update={"model": settings.Model(name="resnet18", norm=norm)})
    network = build.build_network(config)
    groups = build.parameter_groups(network, ["bias", "norm"])
    assert len(groups) == 2
    names = {id(parameter): name for name, parameter in network.named_parameters()}
    excluded = {names[id(parameter)] for parameter in groups[1]["params"]}
    assert {"trunk.bn1.weight", "trunk.bn1.bias", "head.projection.0.bias", "head.projection.1.weight"} <= excluded
    assert "head.prototypes.weight" not in excluded
    assert len(groups[0]["params"]) + len(excluded) == len(names)
    assert len(build.parameter_groups(network, [])) == 1
    norm_only = build.parameter_groups(network, ["norm"])[1]["params"]
    assert "head.projection.0.bias" not in {names[id(parameter)] for parameter in norm_only}
