"""A subject on its device, in the processes of an evaluation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from seer_pipe.errors import UserError
from seer_pipe.evaluate.features import Images, extract_shared
from seer_pipe.evaluate.heads import stratified
from seer_pipe.evaluate.labels import Labelled, open_labelled
from seer_pipe.evaluate.pictures import Pictures
from seer_pipe.evaluate.subject import Subject, load_subject, recalibrate
from seer_pipe.train.parallel import World, join

TEST_SHARE = 0.2  # of each class, where no images to test on are given


@dataclass(frozen=True)
class Bench:
    subject: Subject
    world: World

    def features(self, labelled: Labelled) -> tuple[Tensor, Tensor] | None:
        """Features [n, width] of the images that can be decoded, and their labels [n], on the device.

        Each rank extracts a share; the first one has all, and the others None.
        """
        images = Images(labelled.pictures, self.subject.size, device=str(self.world.device))
        try:
            found = extract_shared(self.subject.trunk, images, labelled.numbers, self.world)
        finally:
            images.close()
        if found is None:
            return None
        if not found.samples:
            raise UserError(f"{labelled.pictures.where}: none of its images can be used")
        labels = torch.from_numpy(labelled.label_of[found.samples])
        return found.matrix.to(self.world.device), labels.to(self.world.device)


@contextmanager
def on_bench(path: Path, pictures: Pictures, untrained: bool) -> Iterator[Bench]:
    """The subject at ``path``; ``untrained`` weights with the BatchNorm statistics of ``pictures``.

    Without any they would be worth less than they are.
    """
    with join() as world:
        subject = load_subject(path, untrained=untrained, device=world.device)
        if untrained:
            recalibrate(subject, pictures)
        yield Bench(subject, world)


def train_and_test(learnt: Labelled, labels: str | None, test: str | None, seed: int) -> tuple[Labelled, Labelled]:
    """What is learnt from, and what is tested on: ``test``, or else a fifth of the former, which is left out of it."""
    if test is not None:
        return learnt, open_labelled(test, labels, learnt.classes)
    left = stratified(torch.from_numpy(learnt.labels), TEST_SHARE, seed, keep_one=True).numpy()
    return learnt.take(~left), learnt.take(left)


def check_classes(learnt: Labelled, labels: Iterable[int]) -> None:
    """UserError where a class is not among ``labels``, those of the images that can be learnt from."""
    absent = set(range(len(learnt.classes))) - set(labels)
    if absent:
        name = learnt.classes[min(absent)]
        raise UserError(f"{learnt.pictures.where}: class {name!r} has no image that can be used to learn from")
