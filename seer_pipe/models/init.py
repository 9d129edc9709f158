"""The first weights of a network."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd

from seer_pipe.distributed.parts import assign, whole_shape

#: Scale 1, shift 0, and where there are running statistics mean 0, variance 1, no batches seen.
NORMS = (_BatchNorm, nn.LayerNorm, nn.GroupNorm)


@runtime_checkable
class Initialised(Protocol):
    """A module that owns tensors of a kind unknown here, as a parameter of its own, and brings their first values."""

    def first_weights(self, generator: torch.Generator) -> Mapping[str, Tensor]:
        """The first value of each of its own parameters and buffers, whole, drawn from ``generator`` on its device."""
        ...


@torch.no_grad()
def init_weights(network: nn.Module, generator: torch.Generator) -> None:
    """Initialise every parameter and buffer of a trunk, a head, or both in place, as the originals do.

    Convolutions: N(0, 2 / fan_out), fan_out = window * output channels (He et al. 2015, section 2.2, backward case).
    Their biases, which only squeeze-and-excitation has, and linear layers, weights and biases: U(-b, b) with
    b = 1 / sqrt(fan_in). Embeddings: N(0, 1). BatchNorm, LayerNorm, GroupNorm: scale 1, shift 0, running mean 0,
    variance 1, no batches seen. Modules that own other tensors say what these begin with (see `Initialised`).

    Modules are visited in registration order, a weight before its bias, each tensor drawn whole from
    ``generator`` on its device. So the values depend on the generator alone, be the network on the CPU or a GPU,
    fresh from ``to_empty``, or sharded over any number of ranks, which then all pass an equal generator. No more
    than one module's tensors stand whole at a time.

    Raises TypeError for a module with tensors that no rule covers: they would be whatever was in memory.
    """
    for name, module in network.named_modules():
        own = dict(module.named_parameters(recurse=False)) | dict(module.named_buffers(recurse=False))
        if isinstance(module, Initialised):
            first = module.first_weights(generator)
            if first.keys() != own.keys():
                raise TypeError(f"{name}: first_weights gives {sorted(first)}, and its tensors are {sorted(own)}")
            for key, tensor in own.items():
                assign(tensor, first[key])
        elif isinstance(module, _ConvNd):
            window = math.prod(module.kernel_size)
            std = math.sqrt(2 / (window * module.out_channels))
            _normal(module.weight, std, generator)
            _uniform(module.bias, window * module.in_channels // module.groups, generator)
        elif isinstance(module, nn.Linear):
            _uniform(module.weight, module.in_features, generator)
            _uniform(module.bias, module.in_features, generator)
        elif isinstance(module, nn.Embedding):
            _normal(module.weight, 1.0, generator)
        elif isinstance(module, NORMS):
            module.reset_parameters()
        elif own:
            raise TypeError(
                f"{name or 'the network'}: {type(module).__name__} owns {', '.join(own)}, and nothing says what these "
                "begin with: give it a method first_weights(generator)"
            )


def _normal(target: Tensor, std: float, generator: torch.Generator) -> None:
    assign(target, _empty(target, generator).normal_(0, std, generator=generator))


def _uniform(target: Tensor | None, fan_in: int, generator: torch.Generator) -> None:
    if target is not None:
        bound = fan_in**-0.5
        assign(target, _empty(target, generator).uniform_(-bound, bound, generator=generator))


def _empty(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty(whole_shape(like), dtype=torch.float32, device=generator.device)
