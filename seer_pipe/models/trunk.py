"""What every trunk is: images in, one pooled feature vector an image out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F


class Trunk(nn.Module, ABC):
    """A convolutional trunk whose ``state_dict`` has torchvision's names, without the classifier ``fc``."""

    name: str  # as in `trunk_names()`
    stem_kind: Literal["imagenet", "small"]
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
