"""What it takes to import a peer beside this project's torch."""

import torch


def import_torchvision() -> None:
    """torchvision's kernels are not built for every torch, and without their names it does not import."""
    declared = torch.library.Library("torchvision", "FRAGMENT")
    for operator in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, operator):
            declared.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision  # noqa: F401 - while the declarations live
