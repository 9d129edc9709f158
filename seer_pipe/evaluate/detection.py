"""Detection: what a trunk is worth to Faster R-CNN, fine-tuned on images with boxes, by the average precision of COCO.

As Detectron trains: SGD with momentum 0.9 and a weight decay of 1e-4; a learning rate of 0.02 for a batch of 16, scaled
to others, rises over the first 1,000 steps, or a tenth of all, and falls to a tenth after two thirds, and again after
eight ninths. Images are mirrored half the time, and their shorter side is drawn from 0.8 to 1 of ``size``.
"""

from __future__ import annotations

import contextlib
import io
import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor, nn

from seer_pipe import config as settings
from seer_pipe.distributed.world import World
from seer_pipe.errors import UserError
from seer_pipe.evaluate.boxes import Boxes, Photo, open_boxes
from seer_pipe.evaluate.pictures import THREADS, FilePictures, ahead
from seer_pipe.evaluate.progress import Progress
from seer_pipe.evaluate.results import keep
from seer_pipe.evaluate.training import Recipe, average_, orders
from seer_pipe.evaluate.workbench import on_bench
from seer_pipe.train.build import build_optimizer
from seer_pipe.train.parallel import replicate
from seer_pipe.train.restore import training_state, zero_state

OPTIMIZER = settings.Optimizer.model_validate({"name": "sgd", "momentum": 0.9, "weight_decay": 1e-4, "exclude": []})
WARMUP = 1000  # steps, and no more than a tenth
DROPS = (2 / 3, 8 / 9)  # of the training
HEADS = ("fpn", "c4")
SAID = 20  # steps
#: What COCOeval.stats has first, by our names.
SCORES = ("ap", "ap50", "ap75", "ap_small", "ap_medium", "ap_large")


def evaluate_detection(
    path: Path,
    data: list[Path],
    test: list[Path],
    recipe: Recipe,
    *,
    images: Path | None,
    test_images: Path | None,
    head: str,
    frozen: int,
    untrained: bool,
    out: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    **options: Any,
) -> dict[str, Any] | None:
    """Fine-tune a detector on the images of ``data``, and report its average precision on those of ``test``.

    Both as in `open_boxes`. ``head`` and ``frozen``: as in `build_detector`, whose ``options`` may be given too.
    ``out``: a file for the detector's weights. None but on the first rank.
    """
    if head not in HEADS:
        raise UserError(f"--head {head}: give one of {', '.join(HEADS)}")
    if out is not None and not out.absolute().parent.is_dir():
        raise UserError(f"--out {out}: there is no such folder")
    require_torchvision()
    from seer_pipe.evaluate.detector import build_detector

    learnt = open_boxes(data, images)
    tested = open_boxes(test, test_images, learnt.classes)
    photos, left_out = learnt.with_boxes()
    pictures = FilePictures([photo.file for photo in photos], learnt.where)
    with on_bench(path, pictures, untrained) as bench:
        subject, world = bench.subject, bench.world
        stages = len(subject.trunk.stages)
        if not 0 <= frozen <= stages:
            raise UserError(f"--frozen {frozen}: {subject.trunk.name} has {stages} stages")
        identity = {"evaluation": "detection", "head": head, "frozen": frozen, "weights": subject.digest}
        torch.manual_seed(recipe.seed)
        detector = build_detector(
            subject.trunk, len(learnt.classes), head,
            size=recipe.size, frozen=frozen, across_ranks=world.size > 1, **options,
        ).to(world.device)  # fmt: skip
        steps, loss, progress = train(detector, photos, recipe, world, path, identity, say)
        scores = average_precision(tested, detect(detector, tested, world))
        if world.is_first and out is not None:
            safetensors.torch.save_model(detector, str(out), {"classes": "\n".join(learnt.classes)})
        progress.remove()
        if not world.is_first:
            return None
        result = {
            **scores,
            "training_loss": loss,
            "head": head,
            "frozen_stages": frozen,
            "size": recipe.size,
            "epochs": recipe.epochs,
            "steps": steps,
            "batch": min(recipe.batch, len(photos)),
            "lr": recipe.lr,
            "images": len(tested),
            "trained_on": len(photos),
            "left_out": dict(left_out),
            "classes": len(learnt.classes),
            "data": learnt.where,
            "test": tested.where,
            "seed": recipe.seed,
        }
        return keep(path, f"detection-{head}", result, subject, untrained)


def require_torchvision() -> None:
    """UserError where torchvision or pycocotools is not there, or torchvision's operators do not load."""
    try:
        import pycocotools.cocoeval  # noqa: F401
        import torchvision  # noqa: F401
    except ImportError as error:
        raise UserError(f"detection needs {error.name}: pip install 'seer-pipe[detection]'") from None
    except RuntimeError as error:  # its operators are built against another torch
        raise UserError(
            f"torchvision's operators do not load beside torch {torch.__version__} ({error}): install both from one "
            "index, as https://download.pytorch.org/whl/cpu"
        ) from None


def train(
    detector: Any,
    photos: list[Photo],
    recipe: Recipe,
    world: World,
    path: Path,
    identity: dict[str, Any],
    say: Callable[[str], None],
) -> tuple[int, float, Progress]:
    """Train the detector in place: steps, the mean loss of the last epoch, and the state to remove in the end.

    Everything that is drawn follows from the seed, the step and the rank. It is kept as `Progress` has it.
    """
    from seer_pipe.evaluate.detector import to_train

    batch = min(recipe.batch, len(photos))
    if batch % world.size:
        raise UserError(f"a batch of {batch} images does not divide into one or more for each of {world.size} ranks")
    to_train(detector)
    forward = replicate(detector, world) if world.size > 1 else detector
    optimizer = build_optimizer(OPTIMIZER, detector)
    zero_state(optimizer)
    whole = len(photos) // batch
    steps = max(1, round(recipe.epochs * len(photos) / batch))
    recent = torch.zeros(min(whole, steps), device=world.device)
    progress = Progress(
        path,
        identity | asdict(recipe) | {"batch": batch, "data": [str(photo.file) for photo in photos]},
        training_state(detector, optimizer) | {"losses": recent},
        world,
        say,
    )
    begun = progress.resume()["step"]
    with closing(progress):
        for step, (images, targets) in enumerate(_batches(photos, recipe, range(begun, steps), batch, world), begun):
            for group in optimizer.param_groups:
                group["lr"] = recipe.lr * batch / 16 * rate(step, steps)
            torch.manual_seed(_seed(recipe.seed, step, world.rank))  # of the proposals that are learnt from
            parts = forward(
                [image.to(world.device) for image in images],
                [{name: value.to(world.device) for name, value in target.items()} for target in targets],
            )
            loss = torch.stack(list(parts.values())).sum()
            if world.any(not torch.isfinite(loss)):
                raise UserError(f"step {step + 1}: the loss is {loss.item():g}; lower --lr")
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            recent[step % len(recent)] = loss.detach()
            if (step + 1) % SAID == 0 or step + 1 == steps:
                say(f"step {step + 1}/{steps}: loss {loss.item():.4f}")
                if progress.due:
                    average_(recent, world)
                    progress.save(step + 1, {})
    return steps, float(np.mean(world.gather(recent.tolist()))), progress


def rate(step: int, steps: int) -> float:
    """The share of the peak learning rate."""
    warmup = max(1, min(WARMUP, steps // 10))
    return min(1.0, (step + 1) / warmup) * 0.1 ** sum(step >= drop * steps for drop in DROPS)


def _batches(
    photos: list[Photo], recipe: Recipe, steps: range, batch: int, world: World
) -> Iterator[tuple[tuple[Tensor, ...], tuple[dict[str, Tensor], ...]]]:
    """This rank's images and targets of each step, read ahead by threads."""

    def load(order: int, number: int) -> tuple[Tensor, dict[str, Tensor]]:
        image, (boxes, kinds) = photos[number].load(), photos[number].to_learn()
        if np.random.default_rng([recipe.seed, order, number]).random() < 0.5:
            image, boxes = image.flip(2), boxes.clone()
            boxes[:, [0, 2]] = image.shape[2] - boxes[:, [2, 0]]
        return image, {"boxes": boxes, "labels": kinds + 1}  # 0 is the background

    def made() -> Iterator[Any]:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="photos") as pool:
            for order, rows in orders(np.arange(len(photos)), recipe.seed, steps, batch, world):
                for mine in rows.tolist():
                    yield tuple(zip(*pool.map(load, itertools.repeat(order), mine), strict=True))

    return ahead(made())


def _seed(seed: int, step: int, rank: int) -> int:
    return int(np.random.SeedSequence([seed, step, rank]).generate_state(1)[0])


@torch.no_grad()
def detect(detector: nn.Module, tested: Boxes, world: World) -> list[dict[str, Any]]:
    """What is found in the images, as COCO's results, on every rank. Each rank looks at a share."""
    detector.eval()
    mine = range(world.rank, len(tested), world.size)
    found: list[dict[str, Any]] = []
    with ThreadPoolExecutor(THREADS, thread_name_prefix="photos") as pool:
        loaded = (pool.submit(tested.photos[number].load) for number in mine)
        waiting = list(itertools.islice(loaded, THREADS))
        for number in mine:
            image = waiting.pop(0).result()
            waiting += itertools.islice(loaded, 1)
            (one,) = detector([image.to(world.device)])
            for (left, top, right, bottom), kind, score in zip(
                one["boxes"].tolist(), one["labels"].tolist(), one["scores"].tolist(), strict=True
            ):
                box = [left, top, right - left, bottom - top]
                found.append({"image_id": number + 1, "category_id": kind - 1, "bbox": box, "score": score})
    return list(itertools.chain.from_iterable(world.gather(found)))


def average_precision(tested: Boxes, found: list[dict[str, Any]]) -> dict[str, float]:
    """COCO's average precision of what was found, by pycocotools: shares from 0 to 1.

    A category that no box is of counts for nothing, and a size that none has is left out.
    """
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    if not found:
        return dict.fromkeys(SCORES, 0.0)
    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = tested.as_coco()
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(found), "bbox")
        judge.evaluate()
        judge.accumulate()
        judge.summarize()
    return {name: float(score) for name, score in zip(SCORES, judge.stats, strict=False) if score >= 0}
