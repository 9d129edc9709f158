"""What follows from the settings (learning rate of the true batch, steps, …): computed here and nowhere else."""

from __future__ import annotations

import math
from dataclasses import dataclass

from seer_pipe.config.sections import Config
from seer_pipe.errors import UserError


@dataclass(frozen=True)
class Derived:
    """What follows from a config and the size of its shard set."""

    images_in_set: int
    steps: int
    steps_per_epoch: int
    epochs: float
    images: int  # that the run will have seen at its end
    batch_correlation: float | None  # what remains of a sorted set, see `Plan.correlation`; None: no order was given
    images_per_rank: int  # of one step
    peak_lr: float
    warmup_steps: int
    settled_steps: int  # until which the warm-up lasts, or the objective holds something fixed
    chance_loss: float | None  # of a network that distinguishes nothing, where the objective has such a number
    objective: dict[str, float]  # what else follows from its settings


def derive(
    config: Config,
    images_in_set: int,
    world: int = 1,
    finished: tuple[int, int] = (0, 0),
    correlation: float | None = None,
) -> Derived:
    """The one place where settings become numbers. ``finished``: steps and images, for the batch may have changed;
    ``correlation``: of any two batches of the order at most.
    """
    batch, objective = config.train.batch, config.objective
    per_epoch = images_in_set // batch
    if config.train.images is not None:
        wanted = config.train.images
    else:
        wanted = round((config.train.epochs or 1) * per_epoch) * batch
    left = max(0, wanted - finished[1]) // batch
    steps, images = finished[0] + left, finished[1] + left * batch
    if steps < 1:
        raise UserError(f"train: less than one batch of {batch} in all; give more images or epochs")
    return Derived(
        images_in_set=images_in_set,
        steps=steps,
        steps_per_epoch=per_epoch,
        epochs=images / (per_epoch * batch) if per_epoch else 0.0,
        images=images,
        batch_correlation=correlation,
        images_per_rank=batch // world,
        peak_lr=config.optimizer.lr * batch / 256,
        warmup_steps=math.ceil(config.optimizer.warmup_images / batch),
        settled_steps=math.ceil(max(config.optimizer.warmup_images, objective.settled_images) / batch),
        chance_loss=objective.chance_loss(config.views, batch),
        objective=objective.derived(batch),
    )
