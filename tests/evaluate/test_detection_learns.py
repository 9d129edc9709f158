"""Detection on a drawn set: a trunk that knows its things is worth more than one that knows nothing."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from seer_pipe.evaluate.detection import evaluate_detection
from seer_pipe.evaluate.training import Recipe
from seer_pipe.models import build_trunk
from tests.evaluate.operators import operators
from tests.evaluate.test_detection import FEW, exported


def texture(kind: int, height: int, width: int, dice: np.random.Generator) -> np.ndarray:
    """Grey stripes of a period of 4, across or upright, in any contrast and phase."""
    place = np.indices((height, width))[kind] + dice.integers(4)
    return (
        128
        + (place % 4 // 2 * 2 - 1)[..., None] * np.full(3, dice.integers(30, 90))
        + dice.normal(0, 12, (height, width, 3))
    )


def pretrained(steps: int) -> nn.Module:
    """A ResNet-18 that knows stripes across from upright ones and from noise, by their labels."""
    torch.manual_seed(0)
    dice, trunk = np.random.default_rng(1), build_trunk("resnet18")
    head = nn.Linear(512, 3)
    optimizer = torch.optim.SGD([*trunk.parameters(), *head.parameters()], lr=0.05, momentum=0.9)
    for _ in range(steps):
        kinds = torch.from_numpy(dice.integers(0, 3, 16))
        pixels = [texture(k, 32, 32, dice) if k < 2 else dice.normal(128, 40, (32, 32, 3)) for k in kinds.tolist()]
        images = (torch.from_numpy(np.stack(pixels)).permute(0, 3, 1, 2).float() - 120) / 57
        loss = nn.functional.cross_entropy(head(trunk(images)), kinds)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return trunk


def striped(folder: Path, count: int, seed: int) -> Path:
    """Noise of 64 pixels with a square of stripes, whose direction is the category."""
    dice, images, things = np.random.default_rng(seed), [], []
    for number in range(count):
        pixels, kind, side = dice.normal(128, 40, (64, 64, 3)), number % 2, int(dice.integers(24, 40))
        left, top = dice.integers(0, 64 - side, 2).tolist()
        pixels[top : top + side, left : left + side] = texture(kind, side, side, dice)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(folder / f"{seed}-{number}.png")
        images.append({"id": number, "file_name": f"{seed}-{number}.png", "width": 64, "height": 64})
        things.append({"image_id": number, "bbox": [left, top, side, side], "category_id": kind})
    file = folder / f"{seed}.json"
    categories = [{"id": 0, "name": "across"}, {"id": 1, "name": "upright"}]
    file.write_text(json.dumps({"images": images, "annotations": things, "categories": categories}))
    return file


@pytest.mark.slow
@pytest.mark.timeout(1200)
@pytest.mark.learns
def test_a_pretrained_trunk_beats_an_untrained_one(tmp_path: Path) -> None:
    learnt, tested = striped(tmp_path, 32, 1), striped(tmp_path, 48, 2)
    found = {}
    for steps in (0, 60):
        trunk = exported(pretrained(steps), tmp_path / str(steps))
        with operators():
            found[steps] = evaluate_detection(
                trunk, [learnt], [tested], Recipe(64, 8, 4, 0.04), images=None, test_images=None, head="fpn", frozen=4,
                untrained=False, **{**FEW, "box_batch_size_per_image": 8},
            )  # fmt: skip
        print(found[steps]["ap50"], found[steps]["training_loss"])
    assert found[60]["ap50"] > found[0]["ap50"] + 0.2
