"""torchvision's operators where its wheel's own do not load."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F


def roi_align(
    maps: Tensor, boxes: Tensor, scale: float, height: int, width: int, samples: int, aligned: bool
) -> Tensor:
    """What torchvision's plain ``_roi_align`` gives for boxes within the image and ``samples`` > 0, many times faster.

    ``boxes`` [k, 5]: the image's number, left, top, right, bottom. [k, channels, height, width].
    """
    left, top, right, bottom = (boxes[:, 1:] * scale - (0.5 if aligned else 0)).unbind(1)

    def places(first: Tensor, last: Tensor, bins: int, pixels: int) -> Tensor:
        """[k, bins * samples], from -1 to 1 over the map."""
        length = last - first if aligned else (last - first).clamp(min=1)
        middles = (torch.arange(bins * samples) + 0.5) / (bins * samples)
        return (2 * (first[:, None] + length[:, None] * middles) + 1) / pixels - 1

    down, across = places(top, bottom, height, maps.shape[2]), places(left, right, width, maps.shape[3])
    grid = torch.stack(torch.broadcast_tensors(across[:, None, :], down[:, :, None]), dim=3)
    found = F.grid_sample(maps[boxes[:, 0].long()], grid, padding_mode="border", align_corners=False)
    return F.avg_pool2d(found, samples)


def nms(boxes: Tensor, scores: Tensor, threshold: float) -> Tensor:
    from torchvision.ops import box_iou

    order, kept = scores.argsort(descending=True), []
    overlap = box_iou(boxes, boxes) > threshold
    gone = torch.zeros(len(boxes), dtype=torch.bool)
    for i in order.tolist():
        if not gone[i]:
            kept.append(i)
            gone |= overlap[i]
    return torch.tensor(kept, dtype=torch.int64)


@contextmanager
def operators() -> Iterator[None]:
    """Beside a CPU-only torch PyPI's wheel does not load its compiled operators: what is above stands in for them.

    Where they load nothing changes.
    """
    declared = torch.library.Library("torchvision", "FRAGMENT")  # its declarations live as long as this object
    if not hasattr(torch.ops.torchvision, "nms"):
        try:
            torch.ops.load_library(str(next(Path(find_spec("torchvision").origin).parent.glob("_C*.so"))))
        except OSError:
            for operator in ("nms", "qnms"):
                declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    importlib.import_module("torchvision.models.detection")
    if sys.modules["torchvision.extension"]._has_ops():
        yield
        return
    boxes, align = sys.modules["torchvision.ops.boxes"], sys.modules["torchvision.ops.roi_align"]
    kernels = torch.library.Library("torchvision", "IMPL")
    kernels.impl("nms", nms, "CPU")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(boxes, "_assert_has_ops", lambda: None)
        patch.setattr(align, "_roi_align", roi_align)
        yield
    kernels._destroy()
    declared._destroy()
