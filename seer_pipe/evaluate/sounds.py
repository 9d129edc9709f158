"""What a network's trunk of sounds is worth: its features of labelled sounds, in five folds.

a folder with meta/esc50.csv    ESC-50 as its repository has it (Piczak 2015), with the folds of that table
a folder class/sound            the folder is the class
a shard set                     labels: a column of its sidecars, a CSV file, or ``folder`` (a sound's folder)

Each fold is classified by the other four, by nearest neighbours and by a linear classifier, and the mean over the folds
counts, as ESC-50 has it. A sound's features are means over windows as long as those that the network was trained on, at
most ten spread over it, as in AVID's evaluation (Morgado et al. 2021, arXiv 2004.12943).
"""

from __future__ import annotations

import math
import statistics
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from seer_pipe.config import Sound
from seer_pipe.data.media import SOUNDS, Wave, whole_sound, window
from seer_pipe.data.order import Ints
from seer_pipe.data.sound import spectrograms
from seer_pipe.distributed.world import join
from seer_pipe.errors import UserError
from seer_pipe.evaluate.classifiers import fit
from seer_pipe.evaluate.knn import knn_accuracy
from seer_pipe.evaluate.labels import Labelled, left_out, open_labelled
from seer_pipe.evaluate.pictures import FilePictures, ShardPictures, ahead
from seer_pipe.evaluate.results import keep
from seer_pipe.evaluate.subject import Subject, hearing, load_run, load_subject
from seer_pipe.evaluate.table import read_csv
from seer_pipe.export import recalibrate_batch_norm

FOLDS = 5
WINDOWS = 10  # of a sound, at most
BATCH, THREADS = 16, 2
ESC50 = "meta/esc50.csv"  # beside audio/, where its files are
SUFFIXES = {f".{name}" for name in SOUNDS}


def evaluate_sounds(
    path: Path, data: str, labels: str | None, *, k: int, temperature: float, seed: int, untrained: bool
) -> dict[str, Any] | None:
    """Classify each fold of the sounds by the others. ``accuracy`` is the linear classifier's, ``accuracy_knn`` that of
    nearest neighbours, ``folds`` the former of each fold. None but on the first rank.

    ``untrained``: the run's first weights, with the BatchNorm statistics of these sounds.
    """
    with join() as world:
        if not world.is_first:
            return None
        sounds, folds = open_sounds(data, labels, seed)
        subject, trunk, sound = _listener(path, untrained)
        trunk.to(world.device).eval()
        if untrained:
            recalibrate_batch_norm(trunk, (heard for _, heard, _ in _heard(sounds, sound, world.device)))
        features, numbers = _features(trunk, sounds, sound, world.device)
        y = torch.from_numpy(sounds.label_of[numbers]).to(world.device)
        found = _by_folds(features, y, folds[numbers], sounds, k=k, temperature=temperature, seed=seed)
    left = sounds.left_out + Counter(unreadable=len(sounds) - len(numbers))
    about = {"classes": len(sounds.classes), "data": data, "k": k, "temperature": temperature, "seed": seed}
    result = {**found, "images": len(numbers), "left_out": left_out(left), **about}
    return keep(path, "sounds", result, subject, untrained)


def open_sounds(data: str, labels: str | None, seed: int) -> tuple[Labelled, Ints]:
    """The labelled sounds of ``data``, and the fold of each, by its number: a table's own, or drawn by ``seed``, each
    class shared out evenly."""
    table = Path(data, ESC50)
    if table.is_file():
        return _esc50(Path(data), table)
    sounds = open_labelled(data, labels, suffixes=SUFFIXES)
    folds, dice, dealt = np.zeros(len(sounds.label_of), np.int64), np.random.default_rng(seed), 0
    for label in range(len(sounds.classes)):
        rows = dice.permutation(sounds.numbers[sounds.labels == label])
        folds[rows] = (dealt + np.arange(len(rows))) % FOLDS
        dealt += len(rows)
    return sounds, folds


def _esc50(folder: Path, table: Path) -> tuple[Labelled, Ints]:
    _, rows = read_csv(table, ("filename", "fold", "category"))
    files = [folder / "audio" / name for name, _, _ in rows]
    if not any(file.is_file() for file in files):
        raise UserError(f"{table}: {files[0]}: no such file, and none of the others")
    classes = sorted({category for _, _, category in rows})
    label_of = np.array([classes.index(category) for _, _, category in rows], np.int64)
    _, folds = np.unique([fold for _, fold, _ in rows], return_inverse=True)
    return Labelled(FilePictures(files, str(folder)), np.arange(len(rows)), label_of, classes), folds


def _listener(path: Path, untrained: bool) -> tuple[Subject, nn.Module, Sound]:
    """What is evaluated, its trunk of sounds, and how these are given to it. UserError where it hears nothing."""
    if untrained:
        subject, config, network = load_run(path, untrained=True)
        subject = replace(subject, objective=config.objective, head=network.head, sound=config.views.sound)
    else:
        subject = load_subject(path)
    ears = hearing(subject, path)
    return subject, ears.objective.sound_trunk(ears.head), ears.sound


@torch.no_grad()
def _features(trunk: nn.Module, sounds: Labelled, sound: Sound, device: torch.device) -> tuple[Tensor, Ints]:
    """Means over each sound's windows [n, width], and the numbers of the n that can be used."""
    rows, numbers = [], []
    for found, heard, counts in _heard(sounds, sound, device):
        rows += [part.mean(0) for part in trunk(heard).float().split(counts)]
        numbers += found
    return torch.stack(rows), np.array(numbers)


def _heard(sounds: Labelled, sound: Sound, device: torch.device) -> Iterator[tuple[list[int], Tensor, list[int]]]:
    """Numbers of sounds, the spectrograms of all their windows, and how many each has. UserError where none can be
    used."""
    used = False
    with ThreadPoolExecutor(THREADS, thread_name_prefix="sounds") as pool:
        for batch in ahead(_encoded(sounds)):
            waves = list(pool.map(lambda one: _wave(one[1], sound.rate), batch))
            found = [(number, windows(wave, sound)) for (number, _), wave in zip(batch, waves, strict=True)
                     if wave is not None]  # fmt: skip
            if found:
                used = True
                cut = torch.from_numpy(np.concatenate([each for _, each in found])).to(device)
                yield [number for number, _ in found], spectrograms(cut, sound), [len(each) for _, each in found]
    if not used:
        raise UserError(f"{sounds.pictures.where}: none of its sounds can be used")


def windows(wave: Wave, sound: Sound) -> Wave:
    """Of a wave [samples] windows [n, samples] from its beginning to its end, each half over the next where they need
    not be more than ``WINDOWS`` for that; one, with silence behind it, where it is shorter."""
    length = len(wave) / sound.rate
    count = min(WINDOWS, max(1, math.ceil(2 * length / sound.seconds) - 1))
    centres = np.linspace(sound.seconds / 2, max(length - sound.seconds / 2, sound.seconds / 2), count)
    return np.stack([window(wave, centre, sound) for centre in centres.tolist()])


def _encoded(sounds: Labelled) -> Iterator[list[tuple[int, Path | memoryview | None]]]:
    """Numbers of sounds, and where each is; None where it cannot be read."""
    pictures, numbers = sounds.pictures, sounds.numbers
    if isinstance(pictures, ShardPictures):
        for samples in pictures.samples(numbers, BATCH):
            data = [None if encoded is None else encoded.data for encoded in samples.data]
            yield list(zip(samples.places.sample.tolist(), data, strict=True))
    else:
        assert isinstance(pictures, FilePictures)
        for start in range(0, len(numbers), BATCH):
            yield [(number, pictures.files[number]) for number in numbers[start : start + BATCH].tolist()]


def _wave(place: Path | memoryview | None, rate: int) -> Wave | None:
    """The sound; None where there is none that can be decoded."""
    with suppress(OSError):
        if place is not None:
            return whole_sound(place.read_bytes() if isinstance(place, Path) else place, rate)
    return None


def _by_folds(
    features: Tensor, y: Tensor, folds: Ints, sounds: Labelled, *, k: int, temperature: float, seed: int
) -> dict[str, Any]:
    linear, nearest, classes = [], [], len(sounds.classes)
    for fold in np.unique(folds).tolist():
        tested = torch.from_numpy(folds == fold).to(y.device)
        absent = set(range(classes)) - set(y[~tested].tolist())
        if absent:
            raise UserError(
                f"{sounds.pictures.where}: class {sounds.classes[min(absent)]!r} has no sound that can be used outside "
                f"of fold {fold + 1}; each class needs two, in two folds"
            )
        known, asked = (features[~tested], y[~tested]), (features[tested], y[tested])
        linear.append(fit(*known, classes, seed=seed).accuracy(*asked))
        nearest.append(knn_accuracy(*asked, *known, k=k, temperature=temperature))
    return {"accuracy": statistics.mean(linear), "accuracy_knn": statistics.mean(nearest), "folds": linear}
