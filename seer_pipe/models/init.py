"""The first weights of a network."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


@torch.no_grad()
def init_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Initialise every parameter and buffer of a trunk, a head, or both in place, as the originals do.

    Convolutions: N(0, 2 / fan_out), fan_out = kernel height * kernel width * output channels (He et al. 2015,
    section 2.2, backward case). Their biases, which only squeeze-and-excitation has, and linear layers, weights
    and biases: U(-b, b) with b = 1 / sqrt(fan_in). BatchNorm: scale 1, shift 0, running mean 0, variance 1, no
    batches seen.

    Modules are visited in registration order, a weight before its bias, each tensor drawn whole from
    ``generator`` on its device. So the values depend on the generator alone, be the network on the CPU or a GPU,
    fresh from ``to_empty``, or sharded over any number of ranks, which then all pass an equal generator. No more
    than one tensor stands whole at a time.
    """
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            window = math.prod(module.kernel_size)
            std = math.sqrt(2 / (window * module.out_channels))
            _assign(module.weight, _empty(module.weight, generator).normal_(0, std, generator=generator))
            _uniform(module.bias, window * module.in_channels // module.groups, generator)
        elif isinstance(module, nn.Linear):
            _uniform(module.weight, module.in_features, generator)
            _uniform(module.bias, module.in_features, generator)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_parameters()


def _uniform(target: Tensor | None, fan_in: int, generator: torch.Generator) -> None:
    if target is not None:
        bound = fan_in**-0.5
        _assign(target, _empty(target, generator).uniform_(-bound, bound, generator=generator))


def _empty(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty(like.shape, dtype=torch.float32, device=generator.device)


def _assign(target: Tensor, values: Tensor) -> None:
    """Copy; of a sharded tensor each rank keeps its part of the values, which all ranks drew alike."""
    if isinstance(target, DTensor):
        values = distribute_tensor(values.to(target.device), target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(values)
