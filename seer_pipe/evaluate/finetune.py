"""The whole network trained on labels, from the weights of a run or an export: what they are worth to a fine-tuner.

The recipe is SEER's (arXiv 2103.01988): a new linear classifier on the trunk, and all of it trained in 35 epochs of SGD
with momentum 0.9, at a learning rate of 0.0125 for a batch of 256 that falls to a tenth after the 30th, with a weight
decay of 1e-4, on random resized crops and their mirror images. Two things are ours. The classifier's features are
standardised, as in the linear evaluation: their scale differs from trunk to trunk, the learning rate does not. And at
the end BatchNorm gets its statistics from whole training images: after few steps the running ones lag behind.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import nn

from seer_pipe import config as settings
from seer_pipe.errors import UserError
from seer_pipe.evaluate.classifiers import stratified
from seer_pipe.evaluate.features import Images
from seer_pipe.evaluate.labels import open_labelled
from seer_pipe.evaluate.results import keep, keep_rows
from seer_pipe.evaluate.subject import sample_evenly
from seer_pipe.evaluate.training import Recipe, classifier, count_right, train
from seer_pipe.evaluate.workbench import check_classes, on_bench, train_and_test
from seer_pipe.export import recalibrate_batch_norm
from seer_pipe.models import Trunk
from seer_pipe.train import syncbn

OPTIMIZER = settings.Optimizer.model_validate(
    {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4, "exclude": ["norm"]}
)
DROP = 30 / 35  # of the training: where the learning rate falls
FEW_VALUES = 256  # a channel: of fewer, a batch's statistics say little of those that evaluation has


def evaluate_finetune(
    path: Path,
    data: str,
    labels: str | None,
    test: str | None,
    recipe: Recipe,
    *,
    untrained: bool,
    share: float = 1,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any] | None:
    """Fine-tune on the images of ``data``, and report the accuracy of the central crops of those of ``test``.

    Without ``test`` a fifth of ``data`` is held out to test on. ``share``: of each class's other images, those that are
    learnt from, drawn by the recipe's seed; which they were is kept with the result. None but on the first rank.
    """
    if not 0 < share <= 1:
        raise UserError(f"--share {share:g}: a part of the images, more than 0 and at most 1")
    learnt = open_labelled(data, labels)
    part, tested = train_and_test(learnt, labels, test, recipe.seed)
    check_classes(part, part.labels.tolist())
    if share < 1:
        part = part.take(stratified(torch.from_numpy(part.labels), share, recipe.seed).numpy())
    name = f"finetune-{recipe.size}" + (f"-share{share:g}" if share < 1 else "")
    with on_bench(path, learnt.pictures, untrained) as bench:
        trunk, world = bench.subject.trunk, bench.world
        identity = {"evaluation": name, "weights": bench.subject.digest}
        head = nn.Sequential(
            nn.BatchNorm1d(trunk.width, affine=False), classifier(trunk.width, len(part.classes), recipe.seed)
        )
        network = nn.Sequential(trunk, head).to(world.device)
        if warning := few_values(trunk, recipe.size, min(recipe.batch, len(part))):
            say(f"warning: {warning}")
        if world.size > 1:
            syncbn.convert(network)
        done, progress = train(
            network, part, recipe, world,
            optimizer=OPTIMIZER, rate=lambda finished, _: 1 if finished < DROP else 0.1,
            path=path, identity=identity, say=say,
        )  # fmt: skip
        with closing(Images(part.pictures, recipe.size, device=str(world.device))) as whole:
            recalibrate_batch_norm(network, (pixels for _, pixels in whole.batches(sample_evenly(part.numbers))))
        (right,), images = count_right(network, tested, recipe.size, world)
        progress.remove()
        if not world.is_first:
            return None
        result = {
            "accuracy": right / images,
            "training_loss": done.losses[0],
            "share": share,
            **done.about(recipe, part, tested, images, data, test),
        }
        if share < 1:
            result["rows"] = keep_rows(path, name, part, bench.subject, untrained)
        return keep(path, name, result, bench.subject, untrained)


def few_values(trunk: Trunk, size: int, batch: int) -> str | None:
    """What to say where BatchNorm would see too few values, and what is learnt would not survive evaluation."""
    if trunk.norm_kind != "batch" or size > (8 if trunk.stem_kind == "small" else 32) or batch >= FEW_VALUES:
        return None
    return (
        f"images of {size} pixels leave maps of one pixel at the end of {trunk.name}, so BatchNorm sees {batch} values "
        "a channel in a batch, and what is learnt may not hold in evaluation: use a larger --size or --batch"
    )
