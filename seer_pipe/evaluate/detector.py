"""Faster R-CNN of torchvision on a trunk of ours: with a feature pyramid over its stages, or on the third one (C4).

C4 is what transfer was judged by first (He et al., CVPR 2020): proposals on the third stage's map, and the fourth
stage, with a BatchNorm of its own, on what is cut out of it. The pyramid has 256 channels and BatchNorm.
"""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.faster_rcnn import FastRCNNPredictor
from torchvision.ops import FeaturePyramidNetwork, MultiScaleRoIAlign
from torchvision.ops.feature_pyramid_network import LastLevelMaxPool

from seer_pipe.export import Preprocessing
from seer_pipe.models import Trunk
from seer_pipe.train import syncbn

CHANNELS = 256  # of the pyramid
SIDE = 14  # of what is cut out of the third stage's map
ANCHORS = (32, 64, 128, 256, 512)  # pixels
LONGEST = 1333 / 800  # the longer side, at most, of the shorter one
SCALES = (0.8, 0.84, 0.88, 0.92, 0.96, 1.0)  # of the shorter side in training: 640 to 800 pixels


class _Pyramid(nn.Module):
    out_channels = CHANNELS

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk = trunk
        widths = [width for width, _ in trunk.stages]
        self.pyramid = FeaturePyramidNetwork(widths, CHANNELS, LastLevelMaxPool(), norm_layer=nn.BatchNorm2d)

    def forward(self, images: Tensor) -> Any:
        maps = self.trunk.stage_maps(images)
        return self.pyramid(OrderedDict((str(i), one) for i, one in enumerate(maps)))


class _WithoutLast(nn.Module):
    """A trunk whose last stage was taken out of it."""

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk, self.out_channels = trunk, trunk.stages[-2][0]

    def forward(self, images: Tensor) -> Tensor:
        return self.trunk.feature_map(images)


class _LastStage(nn.Module):
    """The last stage's blocks on what was cut out [n, channels, SIDE, SIDE], to one feature vector each."""

    def __init__(self, blocks: list[nn.Module], width: int) -> None:
        super().__init__()
        self.blocks, self.norm = nn.Sequential(*blocks), nn.BatchNorm2d(width)

    def forward(self, cut: Tensor) -> Tensor:
        return F.adaptive_avg_pool2d(self.norm(self.blocks(cut)).relu(), 1).flatten(1)


def build_detector(
    trunk: Trunk, classes: int, head: str, *, size: int, frozen: int, across_ranks: bool = False, **options: Any
) -> FasterRCNN:
    """A detector of ``classes`` kinds of things, on the trunk itself.

    ``head``: fpn or c4. ``size``: pixels of the shorter side. Of the trunk the stem and ``frozen`` stages are not
    trained, nor are its BatchNorms, which keep their statistics. New ones are synchronous ``across_ranks``. ``options``
    are FasterRCNN's.
    """
    blocks, depths = trunk.blocks(), [depth for _, depth in trunk.stages]
    trunk.requires_grad_(frozen == 0)
    for block in blocks[sum(depths[:frozen]) :]:
        block.requires_grad_(True)
    for module in trunk.modules():
        if isinstance(module, _BatchNorm):
            module.requires_grad_(False)
    about = Preprocessing()
    options = {
        "min_size": tuple(round(scale * size) for scale in SCALES),
        "max_size": round(size * LONGEST),
        "image_mean": about.mean,
        "image_std": about.std,
        **options,
    }
    if head == "fpn":
        pyramid = _Pyramid(trunk)
        if across_ranks:
            syncbn.convert(pyramid.pyramid)
        return FasterRCNN(pyramid, num_classes=classes + 1, **options)
    last = blocks[-depths[-1] :]
    names = {module: name for name, module in trunk.named_modules()}
    for block in last:
        trunk.set_submodule(names[block], nn.Identity())
    box_head = _LastStage(last, trunk.width)
    if across_ranks:
        syncbn.convert(box_head.norm)
    return FasterRCNN(
        _WithoutLast(trunk),
        rpn_anchor_generator=AnchorGenerator((ANCHORS,), ((0.5, 1.0, 2.0),)),
        box_roi_pool=MultiScaleRoIAlign(["0"], SIDE, 2),
        box_head=box_head,
        box_predictor=FastRCNNPredictor(trunk.width, classes + 1),
        **options,
    )


def to_train(detector: FasterRCNN) -> None:
    """Training mode, but for the trunk's BatchNorms."""
    detector.train()
    for module in detector.modules():
        if isinstance(module, _BatchNorm) and not module.weight.requires_grad:
            module.eval()
