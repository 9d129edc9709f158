"""The audio network of AVID: plain convolutions over a spectrogram (Morgado et al. 2021, arXiv 2004.12943, table 7)."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from seer_pipe.models.trunk import Trunk, conv_bn

WIDTHS = (64, 128, 256, 512)


class Conv2dTrunk(Trunk):
    """A 7x7 convolution of stride 2, four blocks of two 3x3 convolutions, the first of stride 2, and the maximum of
    each channel over the last map: a sound counts by its clearest moment, and not by how long it lasts."""

    name, stem_kind, width, stages = "conv2d_10", "imagenet", WIDTHS[-1], tuple((width, 1) for width in WIDTHS)

    def __init__(self, channels: int = 1) -> None:
        super().__init__()
        self.stem = conv_bn(channels, WIDTHS[0], kernel=7, stride=2)
        self.body = nn.Sequential()
        for before, width in zip((WIDTHS[0], *WIDTHS), WIDTHS, strict=False):
            block = (conv_bn(before, width, kernel=3, stride=2), conv_bn(width, width, kernel=3, stride=1))
            self.body.append(nn.Sequential(*block))

    def feature_map(self, images: Tensor) -> Tensor:
        return self.body(self.stem(images))

    def blocks(self) -> list[nn.Module]:
        return list(self.body)

    def forward(self, images: Tensor) -> Tensor:
        """[n, channels, H, W] -> [n, 512], the maximum over the last feature map."""
        return F.adaptive_max_pool2d(self.feature_map(images), 1).flatten(1)
