"""First weights: every tensor has a rule, and what has none is refused."""

from collections.abc import Mapping

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from seer_pipe.models import init_weights
from tests.distributed import run_ranks, whole


class Token(nn.Module):
    """A parameter of its own, as a class token."""

    def __init__(self) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(5, 8))
        self.register_buffer("scale", torch.empty(()))

    def first_weights(self, generator: torch.Generator) -> Mapping[str, Tensor]:
        return {"token": torch.randn(5, 8, generator=generator), "scale": torch.tensor(2.0)}


def everything() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv1d(4, 6, 3), nn.Conv2d(4, 6, 3, groups=2), nn.Conv3d(4, 6, 3), nn.Linear(6, 4), nn.Embedding(50, 8),
        nn.LayerNorm(6), nn.GroupNorm(2, 6), nn.BatchNorm1d(6), nn.GELU(), Token(),
    )  # fmt: skip


def spoilt(network: nn.Module) -> nn.Module:
    """What `to_empty` may find in memory."""
    for tensor in network.state_dict().values():
        tensor.fill_(torch.nan if tensor.is_floating_point() else -7)
    return network


def test_every_tensor_is_given_a_value() -> None:
    network = spoilt(everything())
    init_weights(network, torch.Generator().manual_seed(0))
    state = network.state_dict()
    assert all(tensor.isfinite().all() for tensor in state.values())
    for place in (5, 6, 7):  # norms
        assert (state[f"{place}.weight"] == 1).all()
        assert (state[f"{place}.bias"] == 0).all()
    assert state["7.num_batches_tracked"] == 0
    assert state["9.scale"] == 2
    assert abs(state["4.weight"].std() - 1) < 0.1
    for place, fan_out in ((0, 3 * 6), (1, 9 * 6), (2, 27 * 6)):
        assert abs(state[f"{place}.weight"].std() * (fan_out / 2) ** 0.5 - 1) < 0.25


def test_the_same_values_whatever_was_there() -> None:
    found = []
    for network in (everything(), spoilt(everything())):
        init_weights(network, torch.Generator().manual_seed(0))
        found.append(network.state_dict())
    assert all(torch.equal(found[0][name], found[1][name]) for name in found[0])


@pytest.mark.parametrize("module", [nn.PReLU(), nn.MultiheadAttention(8, 2), nn.ParameterList([torch.zeros(2)])])
def test_tensors_without_a_rule_are_refused(module: nn.Module) -> None:
    with pytest.raises(TypeError, match=r"inner.*owns .*first_weights"):
        init_weights(nn.ModuleDict({"inner": module}), torch.Generator())


def test_values_that_leave_a_tensor_out_are_refused() -> None:
    token = Token()
    token.register_buffer("more", torch.empty(1))
    with pytest.raises(TypeError, match="more"):
        init_weights(token, torch.Generator())


def sharded() -> dict[str, Tensor]:
    with torch.device("meta"):
        network = everything()
    fully_shard(network)
    network.to_empty(device="cpu")
    init_weights(network, torch.Generator().manual_seed(0))
    return {name: whole(tensor) for name, tensor in network.state_dict().items()}


def test_sharded_ranks_begin_with_the_same_values() -> None:
    network = everything()
    init_weights(network, torch.Generator().manual_seed(0))
    for found in run_ranks(2, sharded):
        assert not [name for name, tensor in network.state_dict().items() if not torch.equal(tensor, found[name])]
