"""Fine-tune an exported backbone in torchvision's Faster R-CNN with a feature pyramid, on a COCO-format folder.

    python examples/detection.py BACKBONE IMAGES ANNOTATIONS.json --out detector.pth

BACKBONE is a folder of `seer-pipe export` or `seer-pipe init`. It stands outside the package because it needs
torchvision, which the package does not, and because it is meant to be copied and changed. BatchNorm keeps the
statistics and scales of the pretraining, as is usual with few images a step.
"""

import argparse
import json
from collections import OrderedDict, defaultdict
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.transforms import functional as tv

from seer_pipe.export import load_backbone
from seer_pipe.models import Trunk

Target = dict[str, Tensor]


class CocoFolder(torch.utils.data.Dataset):
    """(image [3, H, W] in [0, 1], its boxes [n, 4] as left, top, right, bottom and labels [n] from 1).

    Crowds and boxes without an area are left out. `classes`: the categories' names, in the order of the labels.
    """

    def __init__(self, images: Path, annotations: Path) -> None:
        content = json.loads(annotations.read_text())
        categories = sorted(content["categories"], key=lambda category: category["id"])
        self.classes = [category["name"] for category in categories]
        label = {category["id"]: number for number, category in enumerate(categories, start=1)}
        self._folder, self._images = images, content["images"]
        self._objects: dict[int, list[tuple[list[float], int]]] = defaultdict(list)
        for thing in content["annotations"]:
            left, top, width, height = thing["bbox"]
            if width > 0 and height > 0 and not thing.get("iscrowd"):
                box = [left, top, left + width, top + height]
                self._objects[thing["image_id"]].append((box, label[thing["category_id"]]))

    def __len__(self) -> int:
        return len(self._images)

    def __getitem__(self, number: int) -> tuple[Tensor, Target]:
        about = self._images[number]
        image = tv.to_tensor(Image.open(self._folder / about["file_name"]).convert("RGB"))
        objects = self._objects[about["id"]]
        boxes = torch.tensor([box for box, _ in objects], dtype=torch.float32).reshape(-1, 4)
        labels = torch.tensor([label for _, label in objects], dtype=torch.int64)
        if torch.rand(()) < 0.5:
            image = image.flip(2)
            boxes[:, [0, 2]] = image.shape[2] - boxes[:, [2, 0]]
        return image, {"boxes": boxes, "labels": labels}


def build_detector(trunk: Trunk, classes: int, **options: Any) -> FasterRCNN:
    """A detector of `classes` kinds of things on the four stages of a trunk; `options` are FasterRCNN's."""
    stages = [f"layer{i}" for i in range(1, 5)]
    body: nn.Module = trunk  # a ResNet's stages have these names already
    if hasattr(trunk, "trunk_output"):
        body = nn.Sequential(OrderedDict(stem=trunk.stem, **dict(zip(stages, trunk.trunk_output, strict=True))))
    outputs = {stage: str(i) for i, stage in enumerate(stages)}
    pyramid = BackboneWithFPN(body, outputs, [width for width, _ in trunk.stages], out_channels=256)
    for module in pyramid.body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.requires_grad_(False)
    return FasterRCNN(pyramid, num_classes=classes + 1, **options)


def fine_tune(
    detector: FasterRCNN, data: CocoFolder, *, steps: int, batch: int, lr: float, device: str = "cpu"
) -> list[float]:
    """The loss of every step: SGD with momentum, a linear warm-up over the first tenth, then a cosine to zero."""
    loader = torch.utils.data.DataLoader(
        data, batch, shuffle=True, collate_fn=lambda rows: tuple(zip(*rows, strict=True))
    )
    moved = [parameter for parameter in detector.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(moved, lr, momentum=0.9, weight_decay=1e-4)
    warmup = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.SequentialLR(optimizer, [
        torch.optim.lr_scheduler.LinearLR(optimizer, 1 / warmup, total_iters=warmup),
        torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, max(1, steps - warmup)),
    ], [warmup])  # fmt: skip
    detector.to(device).train()
    for module in detector.backbone.body.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.eval()
    losses: list[float] = []
    while len(losses) < steps:
        for images, targets in loader:
            parts = detector(
                [image.to(device) for image in images],
                [{name: value.to(device) for name, value in target.items()} for target in targets],
            )
            loss = sum(parts.values())
            if not torch.isfinite(loss):
                raise SystemExit(f"error: step {len(losses) + 1}: the loss is {loss}; lower --lr")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
            if len(losses) % 20 == 0 or len(losses) == steps:
                print(f"step {len(losses)}/{steps}  loss {losses[-1]:.4f}", flush=True)
            if len(losses) == steps:
                break
    return losses


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("backbone", type=Path, help="folder of seer-pipe export or seer-pipe init")
    parser.add_argument("images", type=Path, help="folder of the images")
    parser.add_argument("annotations", type=Path, help="their boxes, a JSON file in COCO's format")
    parser.add_argument("--out", type=Path, required=True, help="file for the detector's weights and class names")
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--batch", type=int, default=2)
    parser.add_argument("--lr", type=float, default=0.0025, help="peak; torchvision's is 0.02 for a batch of 16")
    parser.add_argument("--size", type=int, default=800, help="pixels of the shorter side")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    args = parser.parse_args()
    data = CocoFolder(args.images, args.annotations)
    detector = build_detector(load_backbone(args.backbone), len(data.classes), min_size=args.size)
    fine_tune(detector, data, steps=args.steps, batch=args.batch, lr=args.lr, device=args.device)
    torch.save({"model": detector.cpu().state_dict(), "classes": data.classes}, args.out)
    print(args.out)


if __name__ == "__main__":
    main()
