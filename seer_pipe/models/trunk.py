"""What every trunk is: images in, one pooled feature vector an image out."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn import functional as F


class Trunk(nn.Module, ABC):
    """A convolutional trunk whose ``state_dict`` has torchvision's names, without the classifier ``fc``."""

    name: str  # as in `trunk_names()`
    stem_kind: str  # "imagenet" or "small"
    width: int  # features an image
    stages: tuple[tuple[int, int], ...]  # (output channels, blocks) of each stage

    @abstractmethod
    def feature_map(self, images: Tensor) -> Tensor:
        """[n, 3, H, W] -> [n, width, h, w], the last block's output."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The residual blocks in order: the units that are sharded, recomputed and compiled.

        What precedes them (the stem, under 10,000 parameters) belongs to none of them.
        """

    def forward(self, images: Tensor) -> Tensor:
        """[n, 3, H, W] -> [n, width], averaged over the last feature map."""
        return F.adaptive_avg_pool2d(self.feature_map(images), 1).flatten(1)


@torch.no_grad()
def init_weights(trunk: nn.Module, generator: torch.Generator) -> None:
    """Initialise every parameter and buffer in place, as the original RegNet and ResNet do.

    Convolutions: N(0, 2 / fan_out), fan_out = kernel height * kernel width * output channels (He et al. 2015,
    section 2.2, backward case). Their biases, which only squeeze-and-excitation has: U(-b, b) with
    b = 1 / sqrt(fan_in). BatchNorm: scale 1, shift 0, running mean 0, variance 1, no batches seen.

    Modules are visited in registration order, a weight before its bias, each tensor drawn whole from
    ``generator`` on its device. So the values depend on the generator alone, be the trunk on the CPU or a GPU,
    fresh from ``to_empty``, or sharded over any number of ranks, which then all pass an equal generator.
    """
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            window = math.prod(module.kernel_size)
            std = math.sqrt(2 / (window * module.out_channels))
            _assign(module.weight, _empty(module.weight, generator).normal_(0, std, generator=generator))
            if module.bias is not None:
                bound = (window * module.in_channels // module.groups) ** -0.5
                _assign(module.bias, _empty(module.bias, generator).uniform_(-bound, bound, generator=generator))
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.reset_parameters()


def _empty(like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.empty(like.shape, dtype=torch.float32, device=generator.device)


def _assign(target: Tensor, values: Tensor) -> None:
    """Copy; of a sharded tensor each rank keeps its part of the values, which all ranks drew alike."""
    values = values.to(target.device)
    if isinstance(target, DTensor):
        values = distribute_tensor(values, target.device_mesh, target.placements, src_data_rank=None)
    target.copy_(values)
