"""The whole network trained on labels, from the weights of a run or an export: what they are worth to a fine-tuner.

The recipe is SEER's (arXiv 2103.01988): a new linear classifier on the trunk, and all of it trained in 35 epochs of SGD
with momentum 0.9, at a learning rate of 0.0125 for a batch of 256 that falls to a tenth after the 30th, with a weight
decay of 1e-4, on random resized crops and their mirror images. Two things are ours. The classifier's features are
standardised, as in the linear evaluation: their scale differs from trunk to trunk, the learning rate does not. And at
the end BatchNorm gets its statistics from whole training images: after few steps the running ones lag behind.
"""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Callable, Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seer_pipe import config as settings
from seer_pipe.config import Augment
from seer_pipe.data.order import Ints
from seer_pipe.data.views import Crops, CropSpec, draw
from seer_pipe.distributed.world import World
from seer_pipe.errors import UserError
from seer_pipe.evaluate.features import Images
from seer_pipe.evaluate.labels import Labelled, left_out, open_labelled
from seer_pipe.evaluate.results import keep
from seer_pipe.evaluate.subject import sample_evenly
from seer_pipe.evaluate.workbench import check_classes, on_bench, train_and_test
from seer_pipe.export import recalibrate_batch_norm
from seer_pipe.models import Trunk
from seer_pipe.train import syncbn
from seer_pipe.train.build import build_optimizer, precision
from seer_pipe.train.parallel import replicate

OPTIMIZER = settings.Optimizer.model_validate(
    {"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4, "exclude": ["norm"]}
)
DROP = 30 / 35  # of the training: where the learning rate falls
SCALE = (0.08, 1.0)  # of the crops' area
AUGMENT = Augment(jitter_p=0, grey_p=0, blur_p=0)  # which leaves the flip
FEW_VALUES = 256  # a channel: of fewer, a batch's statistics say little of those that evaluation has
HEAD_STD = 0.01  # of the classifier's first weights, as in the linear evaluation
Batches = Generator[tuple[list[int], Tensor], None, None]


@dataclass(frozen=True)
class Recipe:
    size: int = 224  # pixels
    epochs: float = 35
    batch: int = 256  # over all ranks; no more than there are images
    lr: float = 0.0125  # for a batch of 256, scaled linearly
    seed: int = 0


def evaluate_finetune(
    path: Path,
    data: str,
    labels: str | None,
    test: str | None,
    recipe: Recipe,
    *,
    untrained: bool,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any] | None:
    """Fine-tune on the images of ``data``, and report the accuracy of the central crops of those of ``test``.

    Without ``test`` a fifth of ``data`` is held out to test on. None but on the first rank.
    """
    learnt = open_labelled(data, labels)
    part, tested = train_and_test(learnt, labels, test, recipe.seed)
    check_classes(part, part.labels.tolist())
    with on_bench(path, learnt.pictures, untrained) as bench:
        network, steps, loss, unreadable = finetune(bench.subject.trunk, part, recipe, bench.world, say)
        right, images = _right(network, tested, recipe.size, bench.world)
        if not bench.world.is_first:
            return None
        result = {
            "accuracy": right / images,
            "training_loss": loss,
            "size": recipe.size,
            "epochs": recipe.epochs,
            "steps": steps,
            "batch": min(recipe.batch, len(part)),
            "lr": recipe.lr,
            "images": images,
            "trained_on": len(part) - unreadable,
            "left_out": left_out(part.left_out, tested.left_out, Counter(unreadable=unreadable + len(tested) - images)),
            "classes": len(part.classes),
            "data": data,
            "test": test or f"a part of {data}",
            "seed": recipe.seed,
        }
        return keep(path, f"finetune-{recipe.size}", result, bench.subject, untrained)


def finetune(
    trunk: Trunk, learnt: Labelled, recipe: Recipe, world: World, say: Callable[[str], None]
) -> tuple[nn.Module, int, float, int]:
    """Train ``trunk``, in place, and a classifier on it.

    The network of both, its steps, the last epoch's mean loss, and how many images were met that cannot be used.
    """
    network = nn.Sequential(trunk, _classifier(trunk.width, len(learnt.classes), recipe.seed)).to(world.device).train()
    batch = min(recipe.batch, len(learnt))
    if batch % world.size or batch // world.size < 2:
        raise UserError(f"a batch of {batch} images does not divide into two or more for each of {world.size} ranks")
    if warning := few_values(trunk, recipe.size, batch):
        say(f"warning: {warning}")
    if world.size > 1:
        syncbn.convert(network)
    forward = replicate(network, world) if world.size > 1 else network
    optimizer = build_optimizer(OPTIMIZER, network)
    autocast, kind = precision(settings.Train.model_validate({"batch": batch}), world), world.device.type
    scaler = torch.amp.GradScaler(kind, enabled=autocast == torch.float16)
    per_epoch = len(learnt) / batch
    steps = max(1, round(recipe.epochs * per_epoch))
    losses = torch.zeros(steps, device=world.device)
    labels = torch.from_numpy(learnt.label_of)
    images = Images(learnt.pictures, recipe.size, batch=batch // world.size, device=str(world.device))
    with closing(images), closing(_batches(images, learnt, recipe, batch // world.size, world)) as batches:
        for step, (numbers, pixels) in enumerate(itertools.islice(batches, steps)):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * batch / 256 * (1 if step < DROP * steps else 0.1)
            with torch.autocast(kind, autocast, enabled=autocast is not None):
                scores = forward(pixels.to(world.device))
            loss = F.cross_entropy(scores.float(), labels[numbers].to(world.device))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
            losses[step] = loss.detach()
            if int((step + 1) / per_epoch) > int(step / per_epoch):
                done = int((step + 1) / per_epoch)
                say(f"epoch {done} of {recipe.epochs:g}: loss {_last(losses, step + 1, per_epoch):.4f}")
    with closing(Images(learnt.pictures, recipe.size, device=str(world.device))) as whole:
        recalibrate_batch_norm(network, (pixels for _, pixels in whole.batches(sample_evenly(learnt.numbers))))
    unreadable = set(itertools.chain.from_iterable(world.gather(sorted(images.left_out))))
    return network, steps, float(np.mean(world.gather(_last(losses, steps, per_epoch)))), len(unreadable)


def few_values(trunk: Trunk, size: int, batch: int) -> str | None:
    """What to say where BatchNorm would see too few values, and what is learnt would not survive evaluation."""
    if size > (8 if trunk.stem_kind == "small" else 32) or batch >= FEW_VALUES:
        return None
    return (
        f"images of {size} pixels leave maps of one pixel at the end of {trunk.name}, so BatchNorm sees {batch} values "
        "a channel in a batch, and what is learnt may not hold in evaluation: use a larger --size or --batch"
    )


def _classifier(width: int, classes: int, seed: int) -> nn.Module:
    linear = nn.Linear(width, classes)
    nn.init.normal_(linear.weight, std=HEAD_STD, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.BatchNorm1d(width, affine=False), linear)


def _last(losses: Tensor, steps: int, per_epoch: float) -> float:
    return float(losses[:steps][-max(1, round(per_epoch)) :].mean())


def _batches(images: Images, learnt: Labelled, recipe: Recipe, count: int, world: World) -> Batches:
    """Exactly ``count`` random crops at a time, endlessly; every epoch in an order of its own, of which each rank has a
    share. Images that cannot be used are skipped."""
    numbers: list[int] = []
    pixels = torch.empty(0, device=world.device)
    crop = CropSpec(1, recipe.size, SCALE, AUGMENT)
    for epoch in itertools.count():
        order = np.random.default_rng([recipe.seed, epoch]).permutation(learnt.numbers)[world.rank :: world.size]
        found = 0
        for more, new in images.batches(order, partial(_view, recipe.seed, epoch, crop)):
            found += len(more)
            numbers, pixels = numbers + more, torch.cat([pixels, new]) if len(numbers) else new
            while len(numbers) >= count:
                yield numbers[:count], pixels[:count]
                numbers, pixels = numbers[count:], pixels[count:]
        if not found:
            raise UserError(f"{learnt.pictures.where}: none of its images can be used")


def _view(seed: int, epoch: int, crop: CropSpec, numbers: Ints, height: Ints, width: Ints) -> Crops:
    return draw(seed, epoch, numbers, height, width, [crop])[0]


@torch.no_grad()
def _right(network: nn.Module, tested: Labelled, size: int, world: World) -> tuple[int, int]:
    """How many images of all ranks get their label, and of how many that can be used."""
    network.eval()
    right = seen = 0
    labels = torch.from_numpy(tested.label_of)
    with closing(Images(tested.pictures, size, device=str(world.device))) as images:
        for numbers, pixels in images.batches(tested.numbers[world.rank :: world.size]):
            found = network(pixels.to(world.device)).argmax(dim=1).cpu()
            right, seen = right + int((found == labels[numbers]).sum()), seen + len(numbers)
    counts = np.array(world.gather((right, seen))).sum(axis=0).tolist()
    if not counts[1]:
        raise UserError(f"{tested.pictures.where}: none of its images can be used")
    return counts[0], counts[1]
