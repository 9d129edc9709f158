"""The linear protocol that published figures are of: that of SwAV's eval_linear.py.

The trunk is frozen in evaluation mode, and a linear classifier sees other random resized crops and mirror images of the
training images in each of 100 epochs. SGD with momentum 0.9 and a weight decay of 1e-6; a learning rate of 0.3 for a
batch of 256, scaled to others, falls by half a cosine, epoch by epoch, to 0. Weights begin from N(0, 0.01), and the
features are taken as they are. It is tested on the central 224 pixels of images resized to 256.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from seer_pipe import config as settings
from seer_pipe.evaluate.labels import open_labelled
from seer_pipe.evaluate.stages import Reader, keep_stages, readings
from seer_pipe.evaluate.training import Recipe, classifier, count_right, train
from seer_pipe.evaluate.workbench import check_classes, on_bench, train_and_test

OPTIMIZER = settings.Optimizer.model_validate({"name": "sgd", "momentum": 0.9, "weight_decay": 1e-6, "exclude": []})


class Classifiers(nn.Module):
    """Features of a `Reader` to the scores of one classifier for each of its readings."""

    def __init__(self, reader: Reader, classes: int, seed: int) -> None:
        super().__init__()
        self._split = reader.split
        self.heads = nn.ModuleList(classifier(reading.width, classes, seed) for reading in reader.readings)

    def forward(self, features: Tensor) -> tuple[Tensor, ...]:
        return tuple(head(part) for head, part in zip(self.heads, self._split(features), strict=True))


def evaluate_published(
    path: Path,
    data: str,
    labels: str | None,
    test: str | None,
    recipe: Recipe,
    *,
    untrained: bool,
    stage: str | None = None,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any] | None:
    """Train linear classifiers on random crops of the images of ``data``, and test them on those of ``test``.

    Without ``test`` a fifth of ``data`` is held out to test on. ``stage``: as in `readings`; those of all stages are
    trained side by side, each as if it were alone. None but on the first rank.
    """
    learnt = open_labelled(data, labels)
    part, tested = train_and_test(learnt, labels, test, recipe.seed)
    check_classes(part, part.labels.tolist())
    with on_bench(path, learnt.pictures, untrained) as bench:
        trunk, world = bench.subject.trunk, bench.world
        reader = Reader(trunk, readings(trunk, recipe.size, stage, grid=True)).eval()
        heads = Classifiers(reader, len(part.classes), recipe.seed).to(world.device)
        identity = {"evaluation": "linear-published", "stage": stage, "weights": bench.subject.digest}
        done, progress = train(
            heads, part, recipe, world,
            heads=len(reader.readings), inputs=torch.no_grad()(reader.forward),
            optimizer=OPTIMIZER, rate=lambda _, epoch: 0.5 * (1 + math.cos(math.pi * epoch / recipe.epochs)),
            path=path, identity=identity, say=say,
        )  # fmt: skip
        rights, images = count_right(nn.Sequential(reader, heads), tested, recipe.size, world)
        progress.remove()
        if not world.is_first:
            return None
        about = {"protocol": "published", **done.about(recipe, part, tested, images, data, test)}
        results = [
            (reading, {"accuracy": right / images, "training_loss": loss, **about})
            for reading, right, loss in zip(reader.readings, rights, done.losses, strict=True)
        ]
        return keep_stages(
            path, "linear-published", stage, results, bench.subject, untrained, lambda found: found["accuracy"]
        )
