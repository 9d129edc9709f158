"""The network of a run: the same first weights however it is spread, and never whole where it is sharded."""

from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seer_pipe import config as settings
from seer_pipe.errors import UserError
from seer_pipe.models import build_trunk
from seer_pipe.train.build import build_network, spread_network
from seer_pipe.train.parallel import World, whole
from tests.distributed import run_ranks
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


def test_first_weights_are_the_same_however_they_are_spread() -> None:
    alone = build_network(recipe())[0].state_dict()
    for world, parallel in ((1, "none"), (2, "ddp"), (3, "fsdp2")):
        for weights, _ in run_ranks(world, first_weights, parallel):
            assert weights.keys() == alone.keys()
            assert [name for name in alone if not torch.equal(weights[name], alone[name])] == []


def test_a_sharded_network_never_stands_whole() -> None:
    network = build_network(recipe())[0]
    sizes = [4 * parameter.numel() for parameter in network.parameters()]
    buffers = sum(buffer.nbytes for buffer in network.buffers())
    for _, peak in run_ranks(4, first_weights, "fsdp2"):
        # a rank's share, one tensor as it is drawn, and its part of it being copied
        assert peak < sum(sizes) / 4 + 1.5 * max(sizes) + 2 * buffers
        assert peak < sum(sizes) / 2
    ((_, peak),) = run_ranks(1, first_weights, "none")
    assert peak > sum(sizes)  # so what is counted is the network


def test_a_trunk_and_a_head_are_drawn_as_torch_would() -> None:
    config = recipe()
    torch.manual_seed(config.seed)
    trunk = build_trunk(config.model.name)
    wanted = config.objective.head
    head = torch.nn.Linear(trunk.width, wanted.hidden[0])
    network = build_network(config)[0]
    for name, tensor in trunk.state_dict().items():
        assert torch.equal(network.state_dict()[f"trunk.{name}"], tensor)
    assert torch.equal(network.state_dict()["head.projection.0.weight"], head.weight)
    assert torch.equal(network.state_dict()["head.projection.0.bias"], head.bias)


@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_one_process_alone_is_told_so(parallel: str) -> None:
    with pytest.raises(UserError, match="one process alone has nobody to share with"):
        spread_network(recipe(parallel=parallel), World(0, 1, torch.device("cpu")))
