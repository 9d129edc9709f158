"""A network trained on labelled images: the loop of fine-tuning, and of the published linear protocol.

Which images stand in a batch, and what is cut of them, follow from the seed and the step alone, so a training that was
stopped continues with those that would have come, on any number of ranks that divides the batch.
"""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass
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
from seer_pipe.evaluate.labels import Labelled, left_out
from seer_pipe.evaluate.progress import Progress
from seer_pipe.train.build import build_optimizer, precision
from seer_pipe.train.parallel import replicate
from seer_pipe.train.restore import training_state, zero_state

SCALE = (0.08, 1.0)  # of the crops' area
AUGMENT = Augment(jitter_p=0, grey_p=0, blur_p=0)  # which leaves the flip
HEAD_STD = 0.01  # of a classifier's first weights
#: The share of the peak learning rate, by what share of all steps, and how many whole epochs, are finished.
Rate = Callable[[float, int], float]
Batches = Generator[tuple[list[int], Tensor], None, None]


@dataclass(frozen=True)
class Recipe:
    size: int = 224  # pixels
    epochs: float = 35
    batch: int = 256  # over all ranks; no more than there are images
    lr: float = 0.0125  # for a batch of 256, scaled linearly
    seed: int = 0


@dataclass(frozen=True)
class Trained:
    steps: int
    batch: int
    losses: list[float]  # means over the last epoch, of each classifier
    unreadable: int  # images that were met and cannot be used

    def about(
        self, recipe: Recipe, learnt: Labelled, tested: Labelled, images: int, data: str, test: str | None
    ) -> dict[str, Any]:
        """For a result: what was trained by ``recipe`` on ``learnt`` of ``data``, and tested on so many ``images``."""
        unreadable = Counter(unreadable=self.unreadable + len(tested) - images)
        return {
            "size": recipe.size,
            "epochs": recipe.epochs,
            "steps": self.steps,
            "batch": self.batch,
            "lr": recipe.lr,
            "images": images,
            "trained_on": len(learnt) - self.unreadable,
            "left_out": left_out(learnt.left_out, tested.left_out, unreadable),
            "classes": len(learnt.classes),
            "data": data,
            "test": test or f"a part of {data}",
            "seed": recipe.seed,
        }


def train(
    network: nn.Module,
    learnt: Labelled,
    recipe: Recipe,
    world: World,
    *,
    heads: int = 1,
    optimizer: settings.Optimizer,
    rate: Rate,
    path: Path,
    identity: Mapping[str, Any],
    inputs: Callable[[Tensor], Tensor] = lambda pixels: pixels,
    say: Callable[[str], None] = lambda _: None,
) -> tuple[Trained, Progress]:
    """Train all of ``network``, which turns ``inputs`` of images into the scores [n, classes] of one classifier, or a
    tuple of those of several, on random crops and their mirror images, by the cross entropy of each.

    Its state is kept beside ``path`` until the caller removes it; ``identity`` says whose it is, beside what is learnt
    and by which recipe.
    """
    batch = min(recipe.batch, len(learnt))
    if batch % world.size or batch // world.size < 2:
        raise UserError(f"a batch of {batch} images does not divide into two or more for each of {world.size} ranks")
    network.train()
    forward = replicate(network, world) if world.size > 1 else network
    optimize = build_optimizer(optimizer, network)
    zero_state(optimize)
    autocast, kind = precision(settings.Train.model_validate({"batch": batch}), world), world.device.type
    scaler = torch.amp.GradScaler(kind, enabled=autocast == torch.float16)
    per_epoch = len(learnt) / batch
    steps = max(1, round(recipe.epochs * per_epoch))
    recent = torch.zeros(max(1, round(per_epoch)), heads, device=world.device)  # a place for each step
    progress = Progress(
        path,
        {**identity, **asdict(recipe), "learnt": _digest(learnt), "batch": batch},
        {**training_state(network, optimize), "losses": recent},
        world,
        say,
    )
    state = progress.resume()
    if "scaler" in state:
        scaler.load_state_dict(state["scaler"])
    labels = torch.from_numpy(learnt.label_of)
    images = Images(learnt.pictures, recipe.size, batch=batch // world.size, device=str(world.device))
    images.left_out |= dict.fromkeys(state.get("unreadable", []), "")
    coming = batches(images, learnt, recipe, range(state["step"], steps), batch, world)
    with closing(images), closing(coming), closing(progress):
        for step, (numbers, pixels) in enumerate(coming, state["step"]):
            for group in optimize.param_groups:
                group["lr"] = recipe.lr * batch / 256 * rate(step / steps, step * batch // len(learnt))
            with torch.autocast(kind, autocast, enabled=autocast is not None):
                scores = forward(inputs(pixels.to(world.device)))
            wanted = labels[numbers].to(world.device)
            each = [F.cross_entropy(one.float(), wanted) for one in scores_of(scores)]
            optimize.zero_grad()
            scaler.scale(torch.stack(each).sum()).backward()
            scaler.step(optimize)
            scaler.update()
            recent[step % len(recent)] = torch.stack(each).detach()
            if (done := int((step + 1) / per_epoch)) > int(step / per_epoch):
                losses = " ".join(f"{loss:.4f}" for loss in _mean(recent, step))
                say(f"epoch {done} of {recipe.epochs:g}: loss {losses} (guessing: {math.log(len(learnt.classes)):.4f})")
                if progress.due:
                    average_(recent, world)
                    progress.save(step + 1, {"scaler": scaler.state_dict(), "unreadable": _met(images, world)})
    means = np.mean(world.gather(_mean(recent, steps - 1)), axis=0).tolist()
    return Trained(steps, batch, means, len(_met(images, world))), progress


def batches(images: Images, learnt: Labelled, recipe: Recipe, steps: range, batch: int, world: World) -> Batches:
    """This rank's share of the random crops of each step.

    Every order of the images gives as many whole batches as it has, and is followed by another; what does not fill a
    batch waits for the next one. An image that cannot be used is replaced by the next one that can.
    """
    crop = CropSpec(1, recipe.size, SCALE, AUGMENT)
    for order, rows in orders(learnt.numbers, recipe.seed, steps, batch, world):
        yield from images.full_batches(rows.reshape(-1), partial(_view, recipe.seed, order, crop), learnt.numbers)


def orders(numbers: Ints, seed: int, steps: range, batch: int, world: World) -> Iterator[tuple[int, Ints]]:
    """Of each order of ``numbers`` that the steps reach into: which one it is, and what this rank has of those steps,
    [steps, batch / ranks]."""
    whole = len(numbers) // batch
    for order in range(steps.start // whole, -(-steps.stop // whole)):
        rows = np.random.default_rng([seed, order]).permutation(numbers)[: whole * batch]
        first, last = max(steps.start - order * whole, 0), steps.stop - order * whole
        yield order, rows.reshape(whole, world.size, batch // world.size)[first:last, world.rank]


def average_(values: Tensor, world: World) -> None:
    """Make ``values`` their mean over the ranks, on all of them."""
    values.copy_(torch.tensor(np.mean(world.gather(values.tolist()), axis=0)))


def _view(seed: int, order: int, crop: CropSpec, numbers: Ints, height: Ints, width: Ints) -> Crops:
    return draw(seed, order, numbers, height, width, [crop])[0]


def _met(images: Images, world: World) -> list[int]:
    """The images that cannot be used and that any rank met."""
    return sorted(set(itertools.chain.from_iterable(world.gather(list(images.left_out)))))


def _mean(recent: Tensor, step: int) -> list[float]:
    """Over the steps of the last epoch, of which ``step`` is the newest; of each classifier."""
    found: list[float] = recent[: step + 1].mean(dim=0).tolist()
    return found


def _digest(learnt: Labelled) -> str:
    digest = hashlib.sha256(f"{learnt.pictures.where} {learnt.classes}".encode())
    digest.update(learnt.numbers.tobytes())
    digest.update(learnt.labels.tobytes())
    return digest.hexdigest()


def classifier(width: int, classes: int, seed: int) -> nn.Linear:
    """With its first weights, which do not depend on the trunk."""
    linear = nn.Linear(width, classes)
    nn.init.normal_(linear.weight, std=HEAD_STD, generator=torch.Generator().manual_seed(seed))
    nn.init.zeros_(linear.bias)
    return linear


@torch.no_grad()
def count_right(network: nn.Module, tested: Labelled, size: int, world: World) -> tuple[list[int], int]:
    """How many central crops get their label by each classifier of ``network``, and of how many that can be used; over
    all ranks."""
    network.eval()
    counts = []
    labels = torch.from_numpy(tested.label_of)
    with closing(Images(tested.pictures, size, device=str(world.device))) as images:
        for numbers, pixels in images.batches(tested.numbers[world.rank :: world.size]):
            found = [one.argmax(dim=1).cpu() for one in scores_of(network(pixels.to(world.device)))]
            counts.append([len(numbers), *(int((one == labels[numbers]).sum()) for one in found)])
    gathered = [count for share in world.gather(counts) for count in share]
    if not gathered:
        raise UserError(f"{tested.pictures.where}: none of its images can be used")
    seen, *rights = np.array(gathered).sum(axis=0).tolist()
    return rights, seen


def scores_of(output: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return output if isinstance(output, tuple) else (output,)
