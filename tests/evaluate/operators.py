"""torchvision's operators where its wheel's own do not load."""

import importlib
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch


def nms(boxes: torch.Tensor, scores: torch.Tensor, threshold: float) -> torch.Tensor:
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
    """Beside a CPU-only torch PyPI's wheel does not load its compiled operators: its own roi_align in plain torch, not
    compiled, and a plain nms stand in for them. Where they load nothing changes."""
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
        patch.setattr(align, "_roi_align", align._roi_align.__wrapped__)
        yield
    kernels._destroy()
    declared._destroy()
