"""The network of a run: the same first weights however it is spread, and never whole where it is sharded."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seer_pipe import config as settings
from seer_pipe.distributed.world import World
from seer_pipe.errors import UserError
from seer_pipe.models import Trunk, build_trunk
from seer_pipe.recipes import load_recipe
from seer_pipe.train import build
from seer_pipe.train.build import build_network, spread_network
from seer_pipe.train.health import Guard
from seer_pipe.train.parallel import shard
from seer_pipe.train.step import TrainStep
from tests.distributed import run_ranks, whole
from tests.objectives.moments import at
from tests.train.helpers import small


def recipe(**train: Any) -> settings.Config:
    return small("unused", model={"name": "regnety_200mf", "stem": "imagenet"}, train=train)


def this_rank() -> World:
    return World(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))


class LiveBytes(TorchDispatchMode):
    """The most bytes that tensors took at one time, of those made within it."""

    def __init__(self) -> None:
        super().__init__()
        self.peak, self._live = 0, {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for leaf in tree_leaves(out):
            if isinstance(leaf, Tensor) and not isinstance(leaf, DTensor) and leaf.device.type == "cpu":
                storage = leaf.untyped_storage()
                self._live[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self._live = {key: entry for key, entry in self._live.items() if not entry[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self._live.values()))
        return out


def first_weights(parallel: str) -> tuple[dict[str, Tensor], int]:
    """The weights that a run begins with, and the most bytes that building took."""
    with LiveBytes() as live:
        network = spread_network(recipe(parallel=parallel), this_rank()).network
    return {name: whole(tensor) for name, tensor in network.state_dict().items()}, live.peak


@pytest.mark.slow
def test_first_weights_are_the_same_however_they_are_spread() -> None:
    alone = build_network(recipe()).state_dict()
    for world, parallel in ((1, "none"), (2, "ddp"), (3, "fsdp2")):
        for weights, _ in run_ranks(world, first_weights, parallel):
            assert weights.keys() == alone.keys()
            assert [name for name in alone if not torch.equal(weights[name], alone[name])] == []


@pytest.mark.slow
def test_a_sharded_network_never_stands_whole() -> None:
    network = build_network(recipe())
    sizes = [4 * parameter.numel() for parameter in network.parameters()]
    buffers = sum(buffer.nbytes for buffer in network.buffers())
    for _, peak in run_ranks(4, first_weights, "fsdp2"):
        # a rank's share, one tensor as it is drawn, and its part of it being copied
        assert peak < sum(sizes) / 4 + 1.5 * max(sizes) + 2 * buffers
        assert peak < sum(sizes) / 2
    ((_, peak),) = run_ranks(1, first_weights, "none")
    assert peak > sum(sizes)  # so what is counted is the network


class WideTrunk(Trunk):
    """Large weights, small activations."""

    name, stem_kind, width, stages = "wide", "imagenet", 256, ((256, 8),)

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 256, 8, 8)
        self.residual = nn.Sequential(*(nn.Sequential(nn.BatchNorm2d(256), nn.Conv2d(256, 256, 1)) for _ in range(8)))

    def blocks(self) -> list[nn.Module]:
        return list(self.residual)

    def feature_map(self, images: Tensor) -> Tensor:
        return self.residual(self.stem(images).mean((2, 3), keepdim=True))


def peak_of_a_step(train: dict[str, Any]) -> int:
    """The most bytes that what is made in a step takes at one time."""
    config, world = recipe(**train), this_rank()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_trunk", lambda *_, **__: WideTrunk())
        made = spread_network(config, world)
    optimizer = build.build_optimizer(config.optimizer, made.network)
    step = TrainStep(config, settings.derive(config, 1000, world.size), made, optimizer, world,
                     Guard(made.network, optimizer, made.objective, world.device))  # fmt: skip
    crops = [torch.randn(2, 3, size, size) for size in (24, 24, 16, 16)]
    with LiveBytes() as live:
        step(crops, at(0), log=False)
    return live.peak


@pytest.mark.slow
def test_nor_does_its_gradient_where_blocks_are_recomputed() -> None:
    """Without recomputation autograd holds the gradients of the first resolution back, for all blocks.

    Compared, because what FSDP2 gathers and frees is counted for good. Activations are a hundredth of the weights.
    """
    weights = 4 * sum(p.numel() for block in WideTrunk().blocks() for p in block.parameters())
    held = run_ranks(4, peak_of_a_step, {})
    reduced = run_ranks(4, peak_of_a_step, {"activation_checkpointing": True})
    assert min(held) - max(reduced) > 0.6 * weights


def meta_plan(world: int) -> tuple[int, int]:
    """Numbers that the first of so many ranks keeps of the 10B, and the peak of this process's memory in bytes."""
    torch.distributed.destroy_process_group()
    dist.init_process_group("fake", rank=0, world_size=world, store=FakeStore())
    network = build.outline(load_recipe(Path("seer_10b"), []))
    shard(network, network.units(), World(0, world, torch.device("cpu")))
    kept = sum(parameter.to_local().numel() for parameter in network.parameters())
    return kept, 1024 * int(Path("/proc/self/status").read_text().split("VmHWM:")[1].split()[0])


def test_the_10b_is_planned_without_memory() -> None:
    """9.6 billion parameters, 38 GB, over 512 ranks: 19 million each, and a process of the size of torch."""
    ((kept, peak),) = run_ranks(1, meta_plan, 512)
    assert 9.62e9 < 512 * kept < 10.2e9
    assert peak < 2e9


def test_a_trunk_and_a_head_are_drawn_as_torch_would() -> None:
    config = recipe()
    torch.manual_seed(config.seed)
    trunk = build_trunk(config.model.name)
    wanted = config.objective.head
    head = torch.nn.Linear(trunk.width, wanted.hidden[0])
    network = build_network(config)
    for name, tensor in trunk.state_dict().items():
        assert torch.equal(network.state_dict()[f"trunk.{name}"], tensor)
    assert torch.equal(network.state_dict()["head.projection.0.weight"], head.weight)
    assert torch.equal(network.state_dict()["head.projection.0.bias"], head.bias)


@pytest.mark.parametrize(
    ("trunk", "device", "precision", "expected"),
    [
        ("resnet50", "cuda", "bf16", torch.channels_last),
        ("regnety_16gf", "cuda", "bf16", torch.channels_last),
        ("regnety_16gf", "cpu", "auto", torch.channels_last),
        ("resnext101_32x8d", "cuda", "bf16", torch.contiguous_format),
        ("resnet50", "cuda", "fp32", torch.contiguous_format),
        ("resnet50", "cpu", "bf16", torch.contiguous_format),
    ],
)
def test_the_layout_that_was_measured_to_be_fast_is_taken(
    trunk: str, device: str, precision: str, expected: torch.memory_format
) -> None:
    world = World(0, 1, torch.device(device))
    with torch.device("meta"):
        made = build_trunk(trunk)
    assert build.layout(settings.Train(batch=8, precision=precision), made, world) == expected
    for asked, given in ((True, torch.channels_last), (False, torch.contiguous_format)):
        train = settings.Train(batch=8, precision=precision, channels_last=asked)
        assert build.layout(train, made, world) == given


def test_nothing_is_compiled_unless_it_is_asked_for() -> None:
    for asked, replaced in (("auto", False), (True, True)):
        network = spread_network(recipe(compile=asked), World(0, 1, torch.device("cpu"))).network
        assert all(("forward" in vars(block)) == replaced for block in network.units())


@pytest.mark.parametrize("asked", [True, False])
def test_the_benchmark_mode_of_cudnn_is_what_the_config_says(asked: bool) -> None:
    with torch.backends.cudnn.flags(benchmark=not asked):
        build.set_up_torch(settings.Train(batch=8, cudnn_benchmark=asked), World(0, 1, torch.device("cpu")))
        assert torch.backends.cudnn.benchmark is asked


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_one_process_alone_is_told_so(parallel: str) -> None:
    with pytest.raises(UserError, match="one process alone has nobody to share with"):
        spread_network(recipe(parallel=parallel), World(0, 1, torch.device("cpu")))
