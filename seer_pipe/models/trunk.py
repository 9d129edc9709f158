"""What every trunk is: images or clips in, one pooled feature vector each out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from itertools import accumulate
from typing import ClassVar, Literal

from torch import Tensor, nn
from torch.nn import functional as F

from seer_pipe.models.names import Naming

#: The library of names that every trunk has.
OWN = "seer_pipe"


class Trunk(nn.Module, ABC):
    """A convolutional trunk, without a classifier.

    ``namings``: what other libraries call its tensors. Its family brings them, with its own names as those of
    ``torchvision`` if that has such a trunk. Without any it is exported as ``full`` alone, by the names it has here.
    """

    namings: ClassVar[Mapping[str, Naming]] = {}
    #: Whether it takes clips [n, 3, T, H, W], T frames each, where others take images [n, 3, H, W].
    takes_clips: ClassVar[bool] = False
    #: Whether NHWC was measured to be faster for its family (docs/engine.md): what train.channels_last: auto goes by.
    channels_last: bool = False

    name: str  # as in `trunk_names()`
    stem_kind: Literal["imagenet", "small"]
    norm_kind: Literal["batch", "layer"] = "batch"
    width: int  # features an image or clip
    stages: tuple[tuple[int, int], ...]  # (output channels, blocks) of each stage

    def names_in(self, library: str) -> dict[str, str]:
        """{our name of a tensor: that library's name of it}, for every tensor, one to one; of OWN it is ours."""
        if library == OWN:
            return {key: key for key in self.state_dict()}
        theirs = self.namings["torchvision"].translation(self.namings[library], self.stages)
        split = {key: key.rsplit(".", 1) for key in self.state_dict()}
        return {key: f"{theirs[module]}.{tensor}" for key, (module, tensor) in split.items()}

    @abstractmethod
    def feature_map(self, images: Tensor) -> Tensor:
        """[n, 3, H, W] -> [n, width, h, w], the last block's output; [n, 3, T, H, W] -> [n, width, t, h, w]."""

    @abstractmethod
    def blocks(self) -> list[nn.Module]:
        """The residual blocks in order: the units that are sharded, recomputed and compiled.

        What precedes them (the stem, under 20,000 parameters) belongs to none of them.
        """

    def stage_maps(self, images: Tensor) -> list[Tensor]:
        """What the last block of each stage gives, [n, channels, h, w] each, for [n, 3, H, W]; of clips the mean over
        time."""
        blocks, maps = self.blocks(), list[Tensor]()
        with ExitStack() as hooks:
            for end in accumulate(depth for _, depth in self.stages):
                hooks.callback(blocks[end - 1].register_forward_hook(lambda *call: maps.append(call[2])).remove)
            self.feature_map(images)
        return [self._over_time(one) for one in maps]

    def forward(self, images: Tensor) -> Tensor:
        """[n, 3, H, W], or [n, 3, T, H, W], -> [n, width], averaged over the last feature map."""
        return F.adaptive_avg_pool2d(self._over_time(self.feature_map(images)), 1).flatten(1)

    def _over_time(self, maps: Tensor) -> Tensor:
        """[n, channels, h, w], of clips the mean over time."""
        return maps.mean(2) if self.takes_clips else maps


def conv_bn(
    width_in: int, width: int, *, kernel: int, stride: int = 1, groups: int = 1, relu: bool = True
) -> nn.Sequential:
    conv = nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), *([nn.ReLU(inplace=True)] if relu else []))
