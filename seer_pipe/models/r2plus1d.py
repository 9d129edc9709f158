"""R(2+1)D-18, a ResNet of clips: convolutions over space and over time take turns (Tran et al., CVPR 2018)."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor, nn

from seer_pipe.models.names import Naming
from seer_pipe.models.trunk import Trunk

STEM_WIDTH = 64
STEM_BETWEEN = 45  # channels between the stem's two convolutions
WIDTHS = (64, 128, 256, 512)

NAMINGS = {
    "torchvision": Naming(
        stem="stem.0 stem.1 stem.3 stem.4",
        block=lambda i, j: f"layer{i}.{j}",
        parts="conv1.0.0 conv1.0.1 conv1.0.3 conv1.1 conv2.0.0 conv2.0.1 conv2.0.3 conv2.1 downsample.0 downsample.1",
    )
}


class R2Plus1dTrunk(Trunk):
    """R(2+1)D-18 in the variant of torchvision: from the second stage on each halves time and space.

    AVID's (Morgado et al. 2021, arXiv 2004.12943) is another: a whole 3x7x7 convolution and a max-pool in the stem, and
    the maximum over the last map. Weights of the one do not fit the other.
    """

    takes_clips: ClassVar[bool] = True
    namings = NAMINGS
    name, stem_kind, width, stages = "r2plus1d_18", "imagenet", WIDTHS[-1], tuple((width, 2) for width in WIDTHS)

    def __init__(self, channels: int = 3) -> None:
        super().__init__()
        self.stem = nn.Sequential(
            _over_space(channels, STEM_BETWEEN, kernel=7, stride=2),
            nn.BatchNorm3d(STEM_BETWEEN),
            nn.ReLU(inplace=True),
            _over_time(STEM_BETWEEN, STEM_WIDTH),
            nn.BatchNorm3d(STEM_WIDTH),
            nn.ReLU(inplace=True),
        )
        width_in = STEM_WIDTH
        for number, (width, depth) in enumerate(self.stages, 1):
            stage = nn.Sequential()
            for j in range(depth):
                stage.append(Block(width_in, width, stride=2 if number > 1 and j == 0 else 1))
                width_in = width
            self.add_module(f"layer{number}", stage)

    def feature_map(self, images: Tensor) -> Tensor:
        x = self.stem(images)
        for block in self.blocks():
            x = block(x)
        return x

    def blocks(self) -> list[nn.Module]:
        return [block for i in range(1, 5) for block in self.get_submodule(f"layer{i}").children()]


class Block(nn.Module):
    """x + F(x), F = two convolutions, each in two, of as many parameters as two of 3x3x3 from and to these widths."""

    def __init__(self, width_in: int, width: int, *, stride: int) -> None:
        super().__init__()
        between = 27 * width_in * width // (9 * width_in + 3 * width)
        self.conv1 = nn.Sequential(
            _factored(width_in, between, width, stride), nn.BatchNorm3d(width), nn.ReLU(inplace=True)
        )
        self.conv2 = nn.Sequential(_factored(width, between, width, 1), nn.BatchNorm3d(width))
        self.relu = nn.ReLU(inplace=True)
        self.downsample: nn.Module | None = None
        if stride != 1 or width_in != width:
            self.downsample = nn.Sequential(nn.Conv3d(width_in, width, 1, stride, bias=False), nn.BatchNorm3d(width))

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        return self.relu(self.conv2(self.conv1(x)) + shortcut)


def _factored(width_in: int, between: int, width: int, stride: int) -> nn.Sequential:
    return nn.Sequential(
        _over_space(width_in, between, kernel=3, stride=stride),
        nn.BatchNorm3d(between),
        nn.ReLU(inplace=True),
        _over_time(between, width, stride=stride),
    )


def _over_space(width_in: int, width: int, *, kernel: int, stride: int) -> nn.Conv3d:
    side, step, border = (1, kernel, kernel), (1, stride, stride), (0, kernel // 2, kernel // 2)
    return nn.Conv3d(width_in, width, side, step, border, bias=False)


def _over_time(width_in: int, width: int, *, stride: int = 1) -> nn.Conv3d:
    return nn.Conv3d(width_in, width, (3, 1, 1), (stride, 1, 1), (1, 0, 0), bias=False)
