"""Detection on drawn images: that it learns, by both heads, continues where it was stopped, and what is refused."""

import json
import shutil
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from seer_pipe.errors import UserError
from seer_pipe.evaluate import detection, progress
from seer_pipe.evaluate.boxes import open_boxes
from seer_pipe.evaluate.detection import average_precision, evaluate_detection, rate
from seer_pipe.evaluate.results import kept
from seer_pipe.evaluate.training import Recipe
from seer_pipe.export import Preprocessing, export_backbone, recalibrate_batch_norm
from seer_pipe.models import build_trunk
from tests.distributed import run_ranks
from tests.evaluate.operators import operators, roi_align

FEW = {"box_batch_size_per_image": 4, "rpn_post_nms_top_n_train": 8, "rpn_pre_nms_top_n_train": 64,
       "rpn_post_nms_top_n_test": 8, "rpn_pre_nms_top_n_test": 64}  # fmt: skip
RECIPE = Recipe(size=32, epochs=1, batch=2, lr=0.02)


@pytest.fixture
def loaded() -> Iterator[None]:
    with operators():
        yield


@pytest.fixture(scope="module")
def resnet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    return exported(build_trunk("resnet18"), tmp_path_factory.mktemp("resnet") / "out")


def exported(trunk: nn.Module, out: Path) -> Path:
    """With the statistics of noise, where it has none: a detector keeps what a trunk comes with."""
    images = torch.randn(8, 3, 64, 64)
    recalibrate_batch_norm(trunk, [images])
    export_backbone(trunk, out, images=images, metadata={}, preprocessing=Preprocessing(size=64))
    return out


@pytest.fixture(scope="module")
def coco(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return drawn(tmp_path_factory.mktemp("coco"), 6)


def drawn(folder: Path, count: int, seed: int = 0) -> Path:
    """Pictures of 64 pixels with a red or a blue square each; one object more is a crowd, one has no area, and one
    image has no object at all."""
    dice, images, things = np.random.default_rng(seed), [], []
    for number in range(count + 1):
        pixels = dice.integers(90, 120, (64, 64, 3), dtype=np.uint8)
        left, top = dice.integers(4, 30, 2).tolist()
        if number < count:
            pixels[top : top + 28, left : left + 28] = [(220, 20, 20), (20, 20, 220)][number % 2]
            box = [left, top, 28, 28]
            things.append({"image_id": 100 + number, "bbox": box, "category_id": [7, 3][number % 2], "iscrowd": 0})
        Image.fromarray(pixels).save(folder / f"{number}.png")
        images.append({"id": 100 + number, "file_name": f"{number}.png", "width": 64, "height": 64})
    things.append({"image_id": 100, "bbox": [0, 0, 5, 5], "category_id": 3, "iscrowd": 1})
    things.append({"image_id": 101, "bbox": [0, 0, 5, 0], "category_id": 3, "iscrowd": 0})
    things.append({"image_id": 102, "bbox": [50, 50, 40, 40], "category_id": 3, "iscrowd": 0})
    categories = [{"id": 7, "name": "red"}, {"id": 3, "name": "blue"}, {"id": 9, "name": "green"}]
    (folder / "boxes.json").write_text(json.dumps({"images": images, "annotations": things, "categories": categories}))
    return folder / "boxes.json"


def evaluate(
    backbone: Path, coco: Path, recipe: Recipe = RECIPE, head: str = "fpn", frozen: int = 1, **how: Any
) -> Any:
    with operators():
        return evaluate_detection(
            backbone, [coco], [coco], recipe, images=None, test_images=None, head=head, frozen=frozen,
            **{"untrained": False, **FEW, **how},
        )  # fmt: skip


@pytest.mark.parametrize("aligned", [False, True])
def test_the_stand_in_for_roi_align_is_torchvisions_own_in_plain_torch(torchvision, aligned: bool) -> None:
    plain = sys.modules["torchvision.ops.roi_align"]._roi_align.__wrapped__
    torch.manual_seed(0)
    for side in (1, 5, 16):
        corners = 64 * torch.rand(9, 2, 2).sort(dim=1).values
        boxes = torch.cat([torch.arange(9.0)[:, None] % 3, corners.flatten(1)], dim=1)
        arguments = (torch.randn(3, 4, side, side), boxes, side / 64, 7, 5, 2, aligned)
        torch.testing.assert_close(roi_align(*arguments), plain(*arguments), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("name", "head"), [
    ("resnet18", "fpn"), ("resnet18", "c4"), ("regnety_200mf", "c4"), ("resnext50_32x4d", "fpn"),
])  # fmt: skip
def test_both_heads_take_every_trunk_and_train_what_is_theirs(loaded, name: str, head: str) -> None:
    from seer_pipe.evaluate.detector import build_detector, to_train

    trunk = build_trunk(name)
    blocks, depths = trunk.blocks(), [depth for _, depth in trunk.stages]
    frozen = {id(p) for block in blocks[: sum(depths[:2])] for p in block.parameters()}
    trained = {id(p) for block in blocks[sum(depths[:2]) :] for m in block.modules() if isinstance(m, nn.Conv2d)
               for p in m.parameters()}  # fmt: skip
    norms = [module for module in trunk.modules() if isinstance(module, _BatchNorm)]
    before = [norm.running_mean.clone() for norm in norms]
    stem = next(trunk.parameters())
    detector = build_detector(trunk, 2, head, size=32, frozen=2, **FEW)
    to_train(detector)
    image = torch.rand(3, 64, 64)
    target = {"boxes": torch.tensor([[4.0, 4, 40, 40]]), "labels": torch.tensor([1])}
    loss = torch.stack(list(detector([image, image.flip(2)], [target, target]).values())).sum()
    loss.backward()
    moved = {id(p) for p in detector.parameters() if p.grad is not None}
    assert trained <= moved
    assert not moved & (frozen | {id(stem)} | {id(p) for norm in norms for p in norm.parameters()})
    assert all(torch.equal(norm.running_mean, old) for norm, old in zip(norms, before, strict=True))
    new = [m for m in detector.modules() if isinstance(m, _BatchNorm) and m not in set(norms)]
    assert new
    assert all(m.training and m.num_batches_tracked == 1 for m in new)


def test_the_result_counts_what_was_used_and_is_kept(resnet: Path, coco: Path) -> None:
    result = evaluate(resnet, coco)
    assert (result["steps"], result["images"], result["trained_on"], result["classes"]) == (3, 7, 6, 3)
    assert result["left_out"] == {"crowds": 1, "images_without_boxes": 1, "boxes_without_area": 1}
    assert kept(resnet)["detection-fpn-0"] == result


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_what_was_stopped_continues_bit_for_bit(resnet: Path, coco: Path, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(detection, "SAID", 2)
    straight = evaluate(resnet, coco, out=tmp_path / "straight")
    monkeypatch.setattr(progress, "EVERY", 0)
    copy = shutil.copytree(resnet, tmp_path / "export")

    def stop(line: str) -> None:
        if line.startswith("step 3/"):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(copy, coco, say=stop)
    said: list[str] = []
    resumed = evaluate(copy, coco, out=tmp_path / "resumed", say=said.append)
    assert said[0] == "resumed: 2 steps are finished"
    assert resumed == straight
    one, other = load_file(tmp_path / "straight"), load_file(tmp_path / "resumed")
    assert all(torch.equal(one[name], other[name]) for name in one)
    assert any(name.startswith("roi_heads.") for name in one)
    assert not list((copy / "evaluation" / "unfinished").iterdir())


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_ranks_share_the_batches(resnet: Path, coco: Path, tmp_path: Path) -> None:
    """Which proposals are learnt from is drawn on each rank, so losses are near those of one rank, and not equal."""
    recipe = Recipe(64, 3, 2, 0.02)
    alone = evaluate(resnet, coco, recipe)
    first, second = run_ranks(2, evaluate, shutil.copytree(resnet, tmp_path / "export"), coco, recipe)
    assert second is None
    assert first["steps"] == alone["steps"] == 9
    assert first["training_loss"] == pytest.approx(alone["training_loss"], rel=0.2)


def test_the_rate_is_detectrons() -> None:
    steps = 90_000
    assert rate(0, steps) == pytest.approx(1e-3)
    assert [rate(step, steps) for step in (999, 59_999, 60_000, 80_000)] == pytest.approx([1, 1, 0.1, 0.01])
    assert rate(0, 3) == 1


def test_average_precision_counts_neither_crowds_nor_absent_categories(coco: Path) -> None:
    tested = open_boxes([coco])
    right = [
        {"image_id": number, "category_id": kind, "bbox": [b[0], b[1], b[2] - b[0], b[3] - b[1]], "score": 0.9}
        for number, photo in enumerate(tested.photos, 1)
        for b, kind, crowd in zip(photo.boxes, photo.kinds, photo.crowd, strict=True)
        if not crowd and b[3] > b[1]
    ]
    in_crowd = {"image_id": 1, "category_id": tested.classes.index("blue"), "bbox": [0, 0, 5, 5], "score": 0.99}
    whole = average_precision(tested, right)
    assert whole["ap_medium"] == pytest.approx(1)
    assert whole["ap"] < 1  # the thing without an area is one that is not found
    assert "ap_large" not in whole
    assert average_precision(tested, [*right, in_crowd]) == whole
    wrong = [{**one, "category_id": 1 - one["category_id"] if one["category_id"] < 2 else 0} for one in right]
    assert average_precision(tested, wrong)["ap"] < 0.5
    assert average_precision(tested, [])["ap"] == 0


def test_voc_says_the_same(coco: Path, tmp_path: Path) -> None:
    tree = json.loads(coco.read_text())
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (tmp_path / folder).mkdir(parents=True)
    names = {category["id"]: category["name"] for category in tree["categories"]}
    for image in tree["images"]:
        name = f"{image['id']}"
        Image.open(coco.parent / image["file_name"]).save(tmp_path / "JPEGImages" / f"{name}.jpg")
        things = ""
        for thing in tree["annotations"]:
            if thing["image_id"] == image["id"]:
                left, top, width, height = thing["bbox"]
                sides = {"xmin": left + 1, "ymin": top + 1, "xmax": left + width, "ymax": top + height}
                box = "".join(f"<{side}>{value}</{side}>" for side, value in sides.items())
                hard = f"<difficult>{thing['iscrowd']}</difficult>"
                kind = f"<name>{names[thing['category_id']]}</name>"
                things += f"<object>{kind}{hard}<bndbox>{box}</bndbox></object>"
        size = "<size><width>64</width><height>64</height><depth>3</depth></size>"
        (tmp_path / "Annotations" / f"{name}.xml").write_text(f"<annotation>{size}{things}</annotation>")
    listed = tmp_path / "ImageSets" / "Main" / "trainval.txt"
    listed.write_text("".join(f"{image['id']}\n" for image in tree["images"]))
    voc, theirs = open_boxes([listed], classes=["blue", "green", "red"]), open_boxes([coco])
    assert [(p.boxes, p.kinds, p.crowd) for p in voc.photos] == [(p.boxes, p.kinds, p.crowd) for p in theirs.photos]
    both = open_boxes([listed, coco])
    assert (len(both), both.classes) == (14, ["blue", "green", "red"])


def test_boxes_are_cut_at_the_border(coco: Path) -> None:
    photo = open_boxes([coco]).photos[2]
    boxes, _ = photo.to_learn()
    assert boxes[1].tolist() == [50, 50, 64, 64]


Spoil = Callable[[dict[str, Any]], None]


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t: t["images"][1].update(file_name="none.png"), r"none\.png: no such image; --images says"),
        (
            lambda t: t["annotations"][0].update(category_id=5),
            "a box is of category 5, which is none of its categories",
        ),
        (lambda t: t["annotations"][0].update(image_id=5), "a box is of image 5, which is none of its images"),
        (lambda t: t["annotations"][0].update(bbox=[1, 2, 3]), "no file of boxes in COCO's format"),
        (lambda t: t.pop("categories"), "no file of boxes in COCO's format"),
        (lambda t: t.update(images=[], annotations=[]), "there are no images in it"),
        (lambda t: t.update(annotations=[]), "no image has a box that can be learnt"),
        (lambda t: t["images"][0].update(width=65), r"has 64 x 64 pixels, and its boxes are of 65 x 64"),
    ],
)
def test_what_is_wrong_is_said(resnet: Path, coco: Path, tmp_path: Path, spoil: Spoil, message: str) -> None:
    copy = shutil.copytree(coco.parent, tmp_path / "coco") / "boxes.json"
    tree = json.loads(copy.read_text())
    spoil(tree)
    copy.write_text(json.dumps(tree))
    with pytest.raises(UserError, match=message):
        evaluate(resnet, copy)


def test_what_cannot_be_asked_is_said(resnet: Path, coco: Path, tmp_path: Path, monkeypatch) -> None:
    other = shutil.copytree(coco.parent, tmp_path / "coco") / "boxes.json"
    other.write_text(other.read_text().replace('"red"', '"pink"'))
    with pytest.raises(UserError, match="category 'pink' is not among those that are learnt"):
        open_boxes([other], classes=open_boxes([coco]).classes)
    for wrong, message in (({"head": "yolo"}, "--head yolo: give one of fpn, c4"), ({"frozen": 5}, "--frozen 5"),
                           ({"out": tmp_path / "none" / "d"}, "there is no such folder")):  # fmt: skip
        with pytest.raises(UserError, match=message):
            evaluate(resnet, coco, **wrong)
    with pytest.raises(UserError, match="no list of VOC"):
        open_boxes([tmp_path / "trainval.txt"])
    monkeypatch.setitem(sys.modules, "pycocotools.cocoeval", None)
    with pytest.raises(UserError, match=r"needs pycocotools.*pip install 'seer-pipe\[detection\]'"):
        evaluate(resnet, coco)
