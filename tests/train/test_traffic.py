"""What a step is said to send, against the collectives that real ranks call."""

from collections import Counter
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seer_pipe import config as settings
from seer_pipe.distributed.world import World
from seer_pipe.train import build
from seer_pipe.train.build import build_optimizer, spread_network
from seer_pipe.train.health import Guard
from seer_pipe.train.step import TrainStep
from seer_pipe.train.traffic import Collectives, traffic
from tests.distributed import run_ranks
from tests.objectives.moments import at
from tests.train.helpers import small
from tests.train.null_streams import null_streams
from tests.train.test_step import TinyTrunk

BATCH = 16
KINDS = {"_allgather_base_": "all_gather", "_reduce_scatter_base_": "reduce_scatter", "allreduce_": "all_reduce",
         "alltoall_base_": "all_to_all"}  # fmt: skip
Counts = dict[str, tuple[int, int]]  # kind -> calls, bytes


class Counted(TorchDispatchMode):
    """Collectives called within it."""

    def __init__(self) -> None:
        super().__init__()
        self.calls, self.bytes = Counter[str](), Counter[str]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func.namespace == "c10d":
            kind = KINDS[func._opname]
            self.calls[kind] += 1
            self.bytes[kind] += max(leaf.nbytes for leaf in tree_leaves((args, result)) if isinstance(leaf, Tensor))
        return result


def recipe(choice: dict[str, Any]) -> settings.Config:
    objective = {"prototypes": 10, "queue": BATCH if choice.pop("queue", False) else 0, "queue_start_images": 0,
                 "freeze_images": 0, "epsilon": choice.pop("epsilon", 0.05)}  # fmt: skip
    optimizer = {"name": choice.pop("optimizer", "larc"), "exclude": choice.pop("exclude", []),
                 "clip_norm": choice.pop("clip_norm", None)}  # fmt: skip
    return small("unused", objective=objective, optimizer=optimizer, train={"batch": BATCH, **choice})


def counted(choice: dict[str, Any]) -> Counts:
    world = World(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    config = recipe(dict(choice))
    made = spread_network(config, world)
    optimizer = build_optimizer(config.optimizer, made.network)
    step = TrainStep(config, settings.derive(config, 1000, world.size), made, optimizer, world,
                     Guard(made.network, optimizer, made.objective, world.device))  # fmt: skip
    crops = [torch.randn(BATCH // world.size, 3, size, size) for size in (24, 24, 16, 16)]
    for number in range(2):  # the queue is filled, and DDP has found its buckets
        step(crops, at(number * BATCH), log=False)
    with Counted() as mode:
        step(crops, at(2 * BATCH), log=False)
    return {kind: (calls, mode.bytes[kind]) for kind, calls in mode.calls.items()}


def counted_each(choices: list[dict[str, Any]]) -> list[Counts]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_trunk", lambda *_, **__: TinyTrunk())
        return [counted(choice) for choice in choices]


def told(choice: dict[str, Any], world: int) -> Counts:
    calls, sizes = Counter[str](), Counter[str]()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_trunk", lambda *_, **__: TinyTrunk())
        found = traffic(recipe(dict(choice)), world)
    for some in found:
        calls[some.kind] += some.calls
        sizes[some.kind] += some.bytes
    return {kind: (calls[kind], sizes[kind]) for kind in calls}


SHARDED: list[dict[str, Any]] = [
    {"sync_bn": False},
    {"queue": True, "activation_checkpointing": True},
    {"activation_checkpointing": [2], "accumulate": 2, "optimizer": "sgd", "clip_norm": 1.0},
    {"shard_within": 2, "sync_bn": 2, "epsilon": 0.02, "exclude": ["norm"]},
]


@pytest.mark.slow
@pytest.mark.parametrize("world", [2, 4])
def test_sharded_ranks_call_what_is_told(world: int) -> None:
    for choice, found in zip(SHARDED, run_ranks(world, counted_each, SHARDED)[0], strict=True):
        assert found == told(choice, world), choice


FLAT: list[dict[str, Any]] = [
    {"precision": "fp16", "optimizer": "sgd"},
    {"activation_checkpointing": [2], "accumulate": 2, "clip_norm": 1.0, "exclude": ["norm"]},
]


def counted_flat(choices: list[dict[str, Any]]) -> list[Counts]:
    with null_streams():
        return counted_each(choices)


def test_ranks_of_fairscale_call_what_is_told() -> None:
    choices = [{"parallel": "fairscale", **choice} for choice in FLAT]
    for choice, found in zip(choices, run_ranks(2, counted_flat, choices)[0], strict=True):
        assert found == told(choice, 2), choice


def test_replicated_ranks_call_what_is_told() -> None:
    """How DDP cuts the gradients into buckets is its own affair: the bytes are told, and of all else the calls too."""
    choice = {"parallel": "ddp", "queue": True}
    found, expected = run_ranks(2, counted_each, [choice])[0][0], told(choice, 2)
    assert found["all_gather"] == expected["all_gather"]
    assert found["all_reduce"][1] == expected["all_reduce"][1]
    assert "reduce_scatter" not in found


def test_a_ring_sends_a_tensor_once_or_twice() -> None:
    assert Collectives("", "all_gather", 4, 1, 400).sent == 300
    assert Collectives("", "all_reduce", 4, 9, 400).sent == 600
    assert traffic(recipe({}), 1) == []
