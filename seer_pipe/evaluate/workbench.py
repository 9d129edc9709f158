"""A subject on its device, in the processes of an evaluation."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from seer_pipe.distributed.world import World, join
from seer_pipe.errors import UserError
from seer_pipe.evaluate.classifiers import stratified
from seer_pipe.evaluate.features import Images, extract_shared
from seer_pipe.evaluate.labels import Labelled, open_labelled
from seer_pipe.evaluate.pictures import Pictures
from seer_pipe.evaluate.stages import Reader, Reading, readings
from seer_pipe.evaluate.subject import Subject, load_subject, recalibrate

TEST_SHARE = 0.2  # of each class, where no images to test on are given


class Part(NamedTuple):
    """Images as a classifier sees them, on the device."""

    features: tuple[Tensor, ...]  # of each reading [n, width], of those that can be decoded
    labels: Tensor  # [n]
    left_out: Counter[str]  # what is not among them, by reason


@dataclass(frozen=True)
class Bench:
    subject: Subject
    world: World

    def readings(self, stage: str | None, *, grid: bool) -> list[Reading]:
        return readings(self.subject.trunk, self.subject.size, stage, grid=grid)

    def features(self, labelled: Labelled, wanted: Sequence[Reading]) -> Part | None:
        """The features and labels of images.

        Each rank extracts a share; the first one has all, and the others None.
        """
        reader = Reader(self.subject.trunk, wanted)
        images = Images(labelled.pictures, self.subject.size, self.subject.frames, device=str(self.world.device))
        try:
            found = extract_shared(reader, images, labelled.numbers, self.world)
        finally:
            images.close()
        if found is None:
            return None
        if not found.samples:
            raise UserError(f"{labelled.pictures.where}: none of its images can be used")
        labels = torch.from_numpy(labelled.label_of[found.samples])
        left_out = labelled.left_out + Counter(unreadable=len(labelled) - len(found.samples))
        return Part(reader.split(found.matrix.to(self.world.device)), labels.to(self.world.device), left_out)


@contextmanager
def on_bench(path: Path, pictures: Pictures, untrained: bool, *, clips: bool = False) -> Iterator[Bench]:
    """The subject at ``path``; ``untrained`` weights with the BatchNorm statistics of ``pictures``.

    Without any they would be worth less than they are. UserError for a trunk of clips, but where ``clips`` are taken.
    """
    with join() as world:
        subject = load_subject(path, untrained=untrained, device=world.device)
        if subject.trunk.takes_clips and not clips:
            raise UserError(f"{path}: its trunk {subject.trunk.name} takes clips, and this evaluation has images; eval "
                            "knn, linear, lowshot, retrieval, transfer and pairs take clips")  # fmt: skip
        if untrained:
            recalibrate(subject, pictures)
        yield Bench(subject, world)


def train_and_test(learnt: Labelled, labels: str | None, test: str | None, seed: int) -> tuple[Labelled, Labelled]:
    """What is learnt from, and what is tested on: ``test``, or else a fifth of the former, which is held out of it."""
    if test is not None:
        return learnt, open_labelled(test, labels, learnt.classes)
    left = stratified(torch.from_numpy(learnt.labels), TEST_SHARE, seed, keep_one=True).numpy()
    return learnt.take(~left), replace(learnt.take(left), left_out=Counter())  # which is counted with the other part


def check_classes(learnt: Labelled, labels: Iterable[int]) -> None:
    """UserError where a class is not among ``labels``, those of the images that can be learnt from."""
    absent = set(range(len(learnt.classes))) - set(labels)
    if absent:
        name = learnt.classes[min(absent)]
        raise UserError(f"{learnt.pictures.where}: class {name!r} has no image that can be used to learn from")
