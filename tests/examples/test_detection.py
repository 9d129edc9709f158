"""The detection example on drawn images: it runs forward, learns, saves, and the detector finds the boxes."""

import json
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from seer_pipe.export import export_backbone, load_backbone, recalibrate_batch_norm
from seer_pipe.models import build_trunk

EXAMPLE = Path(__file__).parents[2] / "examples" / "detection.py"


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


@pytest.fixture
def example(torchvision, monkeypatch: pytest.MonkeyPatch) -> Iterator[SimpleNamespace]:
    """The example's functions. Where torchvision's compiled operators do not load (its wheel beside a CPU-only torch)
    its own roi_align in plain torch, not compiled, and a plain nms stand in for them."""
    if not torchvision.extension._has_ops():
        import torchvision.ops

        boxes, align = sys.modules["torchvision.ops.boxes"], sys.modules["torchvision.ops.roi_align"]
        kernels = torch.library.Library("torchvision", "IMPL")  # they last as long as this object
        kernels.impl("nms", nms, "CPU")
        monkeypatch.setattr(boxes, "_assert_has_ops", lambda: None)
        monkeypatch.setattr(align, "_roi_align", align._roi_align.__wrapped__)
    yield SimpleNamespace(**runpy.run_path(str(EXAMPLE)))  # noqa: PT022 (returning would end the kernels)


@pytest.fixture
def coco(tmp_path: Path) -> tuple[Path, Path]:
    """Six pictures of 64 pixels with a red or a blue square each; one object more is a crowd, one has no area."""
    dice, images, things = np.random.default_rng(0), [], []
    (tmp_path / "images").mkdir()
    for number in range(6):
        pixels = dice.integers(90, 120, (64, 64, 3), dtype=np.uint8)
        left, top = dice.integers(4, 30, 2).tolist()
        pixels[top : top + 28, left : left + 28] = [(220, 20, 20), (20, 20, 220)][number % 2]
        Image.fromarray(pixels).save(tmp_path / "images" / f"{number}.png")
        images.append({"id": 100 + number, "file_name": f"{number}.png", "width": 64, "height": 64})
        box = [left, top, 28, 28]
        things.append({"image_id": 100 + number, "bbox": box, "category_id": [7, 3][number % 2], "iscrowd": 0})
    things.append({"image_id": 100, "bbox": [0, 0, 5, 5], "category_id": 3, "iscrowd": 1})
    things.append({"image_id": 101, "bbox": [0, 0, 5, 0], "category_id": 3, "iscrowd": 0})
    categories = [{"id": 7, "name": "red"}, {"id": 3, "name": "blue"}]
    content = {"images": images, "annotations": things, "categories": categories}
    (tmp_path / "boxes.json").write_text(json.dumps(content))
    return tmp_path / "images", tmp_path / "boxes.json"


FEW = {"min_size": 64, "max_size": 64, "box_batch_size_per_image": 16, "rpn_post_nms_top_n_train": 32,
       "rpn_pre_nms_top_n_train": 64, "rpn_post_nms_top_n_test": 32, "rpn_pre_nms_top_n_test": 64}  # fmt: skip


@pytest.mark.learns
@pytest.mark.parametrize(("name", "lr", "steps"), [("resnet18", 0.005, 12), ("regnety_200mf", 0.0005, 3)])
def test_an_exported_backbone_learns_to_detect(example, coco, tmp_path: Path, name: str, lr: float, steps: int) -> None:
    """The loss of so few steps on random weights is too noisy to judge a RegNet by: there it stays finite."""
    torch.manual_seed(0)
    images = torch.randn(8, 3, 64, 64)
    trunk = build_trunk(name)
    recalibrate_batch_norm(trunk, [images])  # as a trained one is: the detector keeps the statistics
    export_backbone(trunk, tmp_path / "backbone", images=images, metadata={})
    data = example.CocoFolder(*coco)
    assert data.classes == ["blue", "red"]
    assert [len(target["boxes"]) for _, target in data] == [1] * 6
    detector = example.build_detector(load_backbone(tmp_path / "backbone"), 2, **FEW)
    statistics = [module.running_mean.clone() for module in detector.modules() if hasattr(module, "running_mean")]
    losses = example.fine_tune(detector, data, steps=steps, batch=3, lr=lr)
    assert len(losses) == steps
    assert name != "resnet18" or sum(losses[-3:]) < 0.8 * sum(losses[:3])
    after = [module.running_mean for module in detector.modules() if hasattr(module, "running_mean")]
    assert all(torch.equal(a, b) for a, b in zip(statistics, after, strict=True))
    (found,) = detector.eval()([data[0][0]])
    assert found["boxes"].shape[1] == 4
    assert len(found["boxes"]) == len(found["scores"])


def test_the_command_saves_a_detector_that_loads(example, coco, tmp_path: Path, monkeypatch, capsys) -> None:
    export_backbone(build_trunk("resnet18"), tmp_path / "backbone", images=torch.randn(1, 3, 64, 64), metadata={})
    words = [tmp_path / "backbone", *coco, "--out", tmp_path / "detector.pth", "--steps", "1", "--size", "64"]
    monkeypatch.setattr(sys, "argv", ["detection.py", *map(str, words)])
    example.main()
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "detector.pth")
    saved = torch.load(tmp_path / "detector.pth", weights_only=True)
    assert saved["classes"] == ["blue", "red"]
    example.build_detector(load_backbone(tmp_path / "backbone"), 2).load_state_dict(saved["model"])
