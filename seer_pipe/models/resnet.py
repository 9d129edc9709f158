"""ResNet, ResNeXt and wide ResNet (He et al. 2016, Xie et al. 2017, Zagoruyko and Komodakis 2016)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

from torch import Tensor, nn

from seer_pipe.models.names import Naming
from seer_pipe.models.trunk import Trunk

STEM_WIDTH = 64


@dataclass(frozen=True)
class ResNetParams:
    depths: tuple[int, int, int, int]
    bottleneck: bool = True
    groups: int = 1
    width_per_group: int = 64  # of the first stage's 3x3 convolution

    @property
    def expansion(self) -> int:
        """Output channels for each of the 64, 128, 256, 512 base channels of the stages."""
        return 4 if self.bottleneck else 1

    def inner(self, base: int) -> int:
        """Channels of the 3x3 convolution."""
        return base * self.width_per_group // 64 * self.groups


RESNETS = {
    "resnet18": ResNetParams((2, 2, 2, 2), bottleneck=False),
    "resnet34": ResNetParams((3, 4, 6, 3), bottleneck=False),
    "resnet50": ResNetParams((3, 4, 6, 3)),
    "resnet101": ResNetParams((3, 4, 23, 3)),
    "resnet152": ResNetParams((3, 8, 36, 3)),
    "resnext50_32x4d": ResNetParams((3, 4, 6, 3), groups=32, width_per_group=4),
    "resnext101_32x8d": ResNetParams((3, 4, 23, 3), groups=32, width_per_group=8),
    "resnext101_64x4d": ResNetParams((3, 4, 23, 3), groups=64, width_per_group=4),
    "wide_resnet50_2": ResNetParams((3, 4, 6, 3), width_per_group=128),
    "wide_resnet101_2": ResNetParams((3, 4, 23, 3), width_per_group=128),
}

NAMINGS: dict[str, Naming] = {  # by library; torchvision's are ours
    "torchvision": Naming(  # and timm, VISSL, SwAV
        stem="conv1 bn1",
        block=lambda i, j: f"layer{i}.{j}",
        parts="conv1 bn1 conv2 bn2 conv3 bn3 downsample.0 downsample.1",
    ),
    "huggingface": Naming(
        stem="embedder.embedder.convolution embedder.embedder.normalization",
        block=lambda i, j: f"encoder.stages.{i - 1}.layers.{j}",
        parts="layer.0.convolution layer.0.normalization layer.1.convolution layer.1.normalization"
        " layer.2.convolution layer.2.normalization shortcut.convolution shortcut.normalization",
    ),
    "detectron2": Naming(
        stem="stem.conv1 stem.conv1.norm",
        block=lambda i, j: f"res{i + 1}.{j}",
        parts="conv1 conv1.norm conv2 conv2.norm conv3 conv3.norm shortcut shortcut.norm",
    ),
}
NAMINGS["timm"] = NAMINGS["torchvision"]
NAMINGS["torchvision in nn.Sequential"] = replace(NAMINGS["torchvision"], stem="0 1", block=lambda i, j: f"{i + 3}.{j}")
NAMINGS["lightly"] = replace(  # its own ResNet for small images, which pools and rectifies without modules
    NAMINGS["torchvision"],
    stem="0 1",
    block=lambda i, j: f"{i + 1}.{j}",
    parts="conv1 bn1 conv2 bn2 conv3 bn3 shortcut.0 shortcut.1",
)


class ResNetTrunk(Trunk):
    """A ResNet in the variant of torchvision: a bottleneck's stride is in its 3x3 convolution.

    The "imagenet" stem takes the image to a quarter of its resolution. The "small" stem, one 3x3 convolution of
    stride 1 without pooling, keeps it, for images of 32 to 96 pixels (SimCLR, appendix B.9).
    """

    namings = NAMINGS

    def __init__(self, name: str, stem: Literal["imagenet", "small"], channels: int = 3) -> None:
        super().__init__()
        params = RESNETS[name]
        self.name, self.stem_kind, self.channels_last = name, stem, params.groups == 1
        self.stages = tuple((64 * 2**i * params.expansion, depth) for i, depth in enumerate(params.depths))
        self.width = self.stages[-1][0]
        small = stem == "small"
        self.conv1 = _conv(channels, STEM_WIDTH, kernel=3 if small else 7, stride=1 if small else 2)
        self.bn1 = nn.BatchNorm2d(STEM_WIDTH)
        self.relu = nn.ReLU(inplace=True)
        self.maxpool = nn.Identity() if small else nn.MaxPool2d(3, 2, 1)
        width_in = STEM_WIDTH
        for i, (width, depth) in enumerate(self.stages):
            stage = nn.Sequential()
            for j in range(depth):
                stage.append(_block(params, width_in, 64 * 2**i, stride=2 if i > 0 and j == 0 else 1))
                width_in = width
            self.add_module(f"layer{i + 1}", stage)

    def feature_map(self, images: Tensor) -> Tensor:
        x = self.maxpool(self.relu(self.bn1(self.conv1(images))))
        for block in self.blocks():
            x = block(x)
        return x

    def blocks(self) -> list[nn.Module]:
        return [block for i in range(1, 5) for block in self.get_submodule(f"layer{i}").children()]


class BasicBlock(nn.Module):
    """x + F(x), F = 3x3, 3x3."""

    def __init__(self, width_in: int, width: int, *, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(width_in, width, kernel=3, stride=stride), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.conv2, self.bn2 = _conv(width, width, kernel=3), nn.BatchNorm2d(width)
        self.downsample = _shortcut(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        return self.relu(self.bn2(self.conv2(x)) + shortcut)


class Bottleneck(nn.Module):
    """x + F(x), F = 1x1, grouped 3x3 with the stride, 1x1."""

    def __init__(self, width_in: int, inner: int, width: int, *, stride: int, groups: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = _conv(width_in, inner, kernel=1), nn.BatchNorm2d(inner)
        self.conv2 = _conv(inner, inner, kernel=3, stride=stride, groups=groups)
        self.bn2 = nn.BatchNorm2d(inner)
        self.conv3, self.bn3 = _conv(inner, width, kernel=1), nn.BatchNorm2d(width)
        self.relu = nn.ReLU(inplace=True)
        self.downsample = _shortcut(width_in, width, stride)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.downsample is None else self.downsample(x)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)))
        return self.relu(self.bn3(self.conv3(x)) + shortcut)


def _block(params: ResNetParams, width_in: int, base: int, *, stride: int) -> nn.Module:
    width = base * params.expansion
    if not params.bottleneck:
        return BasicBlock(width_in, width, stride=stride)
    return Bottleneck(width_in, params.inner(base), width, stride=stride, groups=params.groups)


def _shortcut(width_in: int, width: int, stride: int) -> nn.Sequential | None:
    if stride == 1 and width_in == width:
        return None
    return nn.Sequential(_conv(width_in, width, kernel=1, stride=stride), nn.BatchNorm2d(width))


def _conv(width_in: int, width: int, *, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(width_in, width, kernel, stride, kernel // 2, groups=groups, bias=False)
