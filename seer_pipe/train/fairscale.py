"""fairscale's FullyShardedDataParallel around the units of a network, whose modules and names stay as they are.

Each parameter stays one of its own (``flatten_parameters=False``), and is a flat part on every rank between two
forwards (see `distributed.parts`). fairscale sees modules that hold a unit and run what they are given while its
parameters are whole; the unit's forward goes through that module.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable
from typing import Any

import torch
import torch.distributed as dist
from fairscale.nn import FullyShardedDataParallel
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from seer_pipe.distributed.collectives import all_max_
from seer_pipe.distributed.parts import Flat, flat_part, mark
from seer_pipe.distributed.world import World
from seer_pipe.errors import UserError
from seer_pipe.objectives.base import Network

for what in ("TypedStorage is deprecated", r"`torch\.distributed\._\w+` is a private function"):  # its own affair
    warnings.filterwarnings("ignore", what)

#: fairscale gathers and reduces on CUDA streams, which it makes where CUDA is.
DEVICES = {"cuda"}


def shard(network: Network, world: World) -> None:
    """Shard a network on the meta device. Its parameters have memory then, and no values; a unit at a time is whole."""
    if world.device.type not in DEVICES:
        raise UserError(f"train.parallel fairscale: it needs CUDA, and this is a {world.device.type}; use fsdp2 or ddp")
    units = [_wrapped(unit.to_empty(device=world.device), world) for unit in network.units()]
    root = _wrapped(network.to_empty(device=world.device), world, units)
    network.features = _whole_within(root, network.features)  # type: ignore[method-assign]  # the probe's way in


def clear_padding(parameters: Iterable[Tensor]) -> None:
    """What fills a part up is zero, and remains so; rules for first weights may have written there."""
    for parameter in parameters:
        flat = flat_part(parameter)
        if flat is not None:
            parameter.detach()[flat.stop - flat.start :].zero_()


class Scaler(torch.amp.GradScaler):
    """Ranks that hold other parts find other overflows: all skip the step where one of them must."""

    def _unscale_grads_(self, *args: Any, **kwargs: Any) -> dict[torch.device, Tensor]:
        found = super()._unscale_grads_(*args, **kwargs)
        return {device: all_max_(overflow) for device, overflow in found.items()}


class _Unit(FullyShardedDataParallel):
    """Sharded between any two forwards. fairscale leaves the outermost one's parameters whole where it can, and then
    computes with old values what an optimiser, a checkpoint or an objective has changed."""

    def __init__(self, module: nn.Module, world: World) -> None:
        super().__init__(module, flatten_parameters=False, disable_reshard_on_root=False, compute_device=world.device)

    def _register_pre_backward_hooks(self, outputs: Any) -> Any:
        # It knows by the ids of tensors which of them another unit has returned, also of those that are gone.
        self._output_pre_backward_hook_registered.clear()
        return super()._register_pre_backward_hooks(outputs)

    def _wait_for_post_backward(self) -> None:
        super()._wait_for_post_backward()
        self._free_full_params()  # also parameters without a gradient
        self._use_fp32_param_shard()


class _Held(nn.Module):
    """What fairscale wraps: the parameters of ``module``, and whatever is to run while they are whole."""

    def __init__(self, module: nn.Module, units: Iterable[nn.Module]) -> None:
        super().__init__()
        self.module, self.units = module, nn.ModuleList(units)

    def forward(self, function: Callable[..., Any], *args: Any) -> Any:
        return function(*args)


def _wrapped(module: nn.Module, world: World, units: Iterable[nn.Module] = ()) -> _Unit:
    """``module``, whose forward goes through fairscale from now on, around ``units`` within it that do already."""
    cut = [parameter for parameter in module.parameters() if flat_part(parameter) is None]
    shapes = [parameter.shape for parameter in cut]
    unit = _Unit(_Held(module, units), world)
    ranks = dist.get_world_size()
    if ranks > 1:  # of one rank alone it cuts nothing
        for parameter, shape in zip(cut, shapes, strict=True):
            mark(parameter, Flat(shape, world.rank, ranks))
    module.forward = _whole_within(unit, module.forward)
    return unit


def _whole_within(unit: _Unit, function: Callable[..., Any]) -> Callable[..., Any]:
    """``function`` where the unit's parameters are whole. What it returns may hold several tensors."""

    def call(*args: Any) -> Any:
        trees = []

        def run(*args: Any) -> list[Any]:
            leaves, tree = tree_flatten(function(*args))
            trees.append(tree)
            return _joined(leaves)

        return tree_unflatten(unit(run, *args), trees[0])

    return call


def _joined(leaves: list[Any]) -> list[Any]:
    """The same, those with a gradient as outputs of one node, so that the parameters are whole before any of them."""
    moved = [leaf for leaf in leaves if isinstance(leaf, Tensor) and leaf.requires_grad]
    if len(moved) < 2:
        return leaves
    joined = dict(zip(map(id, moved), _Join.apply(*moved), strict=True))
    return [joined.get(id(leaf), leaf) for leaf in leaves]


class _Join(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *tensors: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        return tuple(tensor.view_as(tensor) for tensor in tensors)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        return gradients
