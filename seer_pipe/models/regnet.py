"""RegNetY (Radosavovic et al., "Designing Network Design Spaces", CVPR 2020), up to the sizes of SEER."""

from __future__ import annotations

import math
from collections import OrderedDict
from dataclasses import dataclass, replace
from itertools import groupby

from torch import Tensor, nn

from seer_pipe.models.names import Naming
from seer_pipe.models.trunk import Trunk, conv_bn

STEM_WIDTH = 32
SE_RATIO = 0.25  # of the block's input width


@dataclass(frozen=True)
class RegNetParams:
    """The five numbers that define a RegNetY (section 3.2 of the paper)."""

    depth: int
    w_0: int  # width of the first block
    w_a: float  # slope of the width over the blocks
    w_m: float  # ratio of the widths of neighbouring stages
    group_width: int

    def stages(self) -> tuple[tuple[int, int], ...]:
        """(width, blocks) of each stage.

        Widths grow linearly, are snapped to powers of ``w_m`` and to multiples of 8; equal neighbours form a
        stage. A stage's width is then rounded to a multiple of the group width, and up where rounding down
        would lose more than a tenth: torchvision's rule, which makes 800MF and 8GF other models than pycls'
        (first stages 64 and 224 wide, not 64 and 168), and changes no other size.
        """
        exponents = (round(math.log1p(self.w_a * j / self.w_0) / math.log(self.w_m)) for j in range(self.depth))
        widths = [round(self.w_0 * self.w_m**e / 8) * 8 for e in exponents]
        return tuple((self._fit(width), len(list(same))) for width, same in groupby(widths))

    def _fit(self, width: int) -> int:
        group = min(self.group_width, width)
        fitted = int(width + group / 2) // group * group
        return fitted if fitted >= 0.9 * width else fitted + group


REGNETS = {
    "regnety_200mf": RegNetParams(13, 24, 36.44, 2.49, 8),
    "regnety_400mf": RegNetParams(16, 48, 27.89, 2.09, 8),
    "regnety_800mf": RegNetParams(14, 56, 38.84, 2.4, 16),
    "regnety_1_6gf": RegNetParams(27, 48, 20.71, 2.65, 24),
    "regnety_3_2gf": RegNetParams(21, 80, 42.63, 2.66, 24),
    "regnety_8gf": RegNetParams(17, 192, 76.82, 2.19, 56),
    "regnety_16gf": RegNetParams(18, 200, 106.23, 2.48, 112),
    "regnety_32gf": RegNetParams(20, 232, 115.89, 2.53, 232),
    "regnety_64gf": RegNetParams(20, 352, 147.48, 2.4, 328),
    "regnety_128gf": RegNetParams(27, 456, 160.83, 2.52, 264),
    "regnety_256gf": RegNetParams(27, 640, 230.83, 2.53, 373),  # SEER's; ClassyVision has another of this name
    "regnety_10b": RegNetParams(27, 1744, 620.83, 2.52, 1010),  # SEER's largest (Goyal et al. 2022)
}

NAMINGS: dict[str, Naming] = {  # by library; torchvision's are ours
    "torchvision": Naming(
        stem="stem.0 stem.1",
        block=lambda i, j: f"trunk_output.block{i}.block{i}-{j}",
        parts="proj.0 proj.1 f.a.0 f.a.1 f.b.0 f.b.1 f.se.fc1 f.se.fc2 f.c.0 f.c.1",
    ),
    "timm": Naming(
        stem="stem.conv stem.bn",
        block=lambda i, j: f"s{i}.b{j + 1}",
        parts="downsample.conv downsample.bn conv1.conv conv1.bn conv2.conv conv2.bn se.fc1 se.fc2 conv3.conv conv3.bn",
    ),
    "huggingface": Naming(
        stem="embedder.embedder.convolution embedder.embedder.normalization",
        block=lambda i, j: f"encoder.stages.{i - 1}.layers.{j}",
        parts="shortcut.convolution shortcut.normalization layer.0.convolution layer.0.normalization"
        " layer.1.convolution layer.1.normalization layer.2.attention.0 layer.2.attention.2"
        " layer.3.convolution layer.3.normalization",
    ),
    "detectron2": Naming(
        stem="stem.conv stem.bn",
        block=lambda i, j: f"s{i}.b{j + 1}",
        parts="proj bn f.a f.a_bn f.b f.b_bn f.se.f_ex.0 f.se.f_ex.2 f.c f.c_bn",
    ),
    "vissl": Naming(
        stem="conv1.stem.0 conv1.stem.1",
        block=lambda i, j: f"res{i}.block{i}-{j}",
        parts="proj bn f.a.0 f.a.1 f.b.0 f.b.1 f.se.excitation.0 f.se.excitation.2 f.c f.final_bn",
    ),
}
NAMINGS["torchvision in nn.Sequential"] = replace(  # as lightly's users make a backbone of a model's children
    NAMINGS["torchvision"], stem="0.0 0.1", block=lambda i, j: f"1.block{i}.block{i}-{j}"
)


class RegNetTrunk(Trunk):
    """A RegNetY of the given parameters, ImageNet stem: features at 1/32 of the image's resolution."""

    namings = NAMINGS
    channels_last = True

    def __init__(self, name: str, channels: int = 3) -> None:
        super().__init__()
        params = REGNETS[name]
        self.name, self.stem_kind, self.stages = name, "imagenet", params.stages()
        self.width = self.stages[-1][0]
        self.stem = conv_bn(channels, STEM_WIDTH, kernel=3, stride=2)
        stages: OrderedDict[str, nn.Module] = OrderedDict()
        width_in = STEM_WIDTH
        for number, (width, depth) in enumerate(self.stages, start=1):
            stage: OrderedDict[str, nn.Module] = OrderedDict()
            for j in range(depth):
                stage[f"block{number}-{j}"] = YBlock(
                    width_in, width, stride=2 if j == 0 else 1, group_width=params.group_width
                )
                width_in = width
            stages[f"block{number}"] = nn.Sequential(stage)
        self.trunk_output = nn.Sequential(stages)

    def feature_map(self, images: Tensor) -> Tensor:
        return self.trunk_output(self.stem(images))

    def blocks(self) -> list[nn.Module]:
        return [block for stage in self.trunk_output.children() for block in stage.children()]


class YBlock(nn.Module):
    """x + F(x), F = 1x1, grouped 3x3, squeeze-and-excitation, 1x1: the bottleneck is as wide as its output."""

    def __init__(self, width_in: int, width: int, *, stride: int, group_width: int) -> None:
        super().__init__()
        self.proj: nn.Module | None = None
        if stride != 1 or width_in != width:
            self.proj = conv_bn(width_in, width, kernel=1, stride=stride, relu=False)
        self.f = nn.Sequential(
            OrderedDict(
                a=conv_bn(width_in, width, kernel=1),
                b=conv_bn(width, width, kernel=3, stride=stride, groups=width // min(group_width, width)),
                se=SqueezeExcitation(width, squeeze=round(SE_RATIO * width_in)),
                c=conv_bn(width, width, kernel=1, relu=False),
            )
        )
        self.activation = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x if self.proj is None else self.proj(x)
        return self.activation(shortcut + self.f(x))


class SqueezeExcitation(nn.Module):
    """Scale each channel by a gate computed from all channels' means (Hu et al., CVPR 2018)."""

    def __init__(self, width: int, *, squeeze: int) -> None:
        super().__init__()
        self.fc1 = nn.Conv2d(width, squeeze, 1)
        self.fc2 = nn.Conv2d(squeeze, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        pooled = nn.functional.adaptive_avg_pool2d(x, 1)
        return x * self.fc2(self.fc1(pooled).relu()).sigmoid()
