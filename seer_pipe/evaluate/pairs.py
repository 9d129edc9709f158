"""Whether pictures and their sounds find each other, among all of a set."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seer_pipe.data.chunks import Samples
from seer_pipe.data.dali import Augmenter, BadImages
from seer_pipe.data.media import Media
from seer_pipe.data.seen import cut
from seer_pipe.data.views import CropSpec, centre, middle
from seer_pipe.distributed.world import join
from seer_pipe.errors import UserError
from seer_pipe.evaluate.labels import left_out
from seer_pipe.evaluate.pictures import ShardPictures
from seer_pipe.evaluate.results import keep
from seer_pipe.evaluate.subject import Hearing, Subject, hearing, load_subject
from seer_pipe.export import Preprocessing
from seer_pipe.shards import ShardSet

FIRST = (1, 5, 10)  # ranks that recall is given at
BATCH, THREADS = 64, 2


def ranks(queries: Tensor, keys: Tensor, rows: int = 1024) -> Tensor:
    """The rank [n], from 1, of the key of each query's own row among ``keys``: unit rows [n, D] both. Keys that are as
    near count as nearer, so that where all are one nothing is found."""
    found = []
    for start in range(0, len(queries), rows):
        cosines = queries[start : start + rows] @ keys.T
        here = torch.arange(len(cosines), device=cosines.device)
        found.append((cosines >= cosines[here, start + here, None]).sum(1))
    return torch.cat(found)


def evaluate_pairs(path: Path, data: str) -> dict[str, Any] | None:
    """Recall at 1, 5 and 10 of each picture's sound and of each sound's picture, those of the middle of the samples.

    ``accuracy`` is the mean of the two at 1. UserError where the subject hears nothing.
    """
    with join() as world:
        if not world.is_first:
            return None
        subject = load_subject(path, device=world.device)
        ears = hearing(subject, path)
        pictures = ShardPictures(ShardSet.open(data))
        parts = list(_embedded(subject, ears, pictures, str(world.device)))
        if not parts:
            raise UserError(f"{data}: none of its samples is a picture with its sound")
        seen, heard = (torch.cat(part) for part in zip(*parts, strict=True))
    found = {"sound": ranks(seen, heard), "picture": ranks(heard, seen)}
    recalls = {f"{what}_at_{k}": float((at <= k).float().mean()) for what, at in found.items() for k in FIRST}
    left = Counter(excluded=len(pictures) - len(pictures.usable), unreadable=len(pictures.usable) - len(seen))
    result = {"accuracy": (recalls["sound_at_1"] + recalls["picture_at_1"]) / 2, **recalls, "images": len(seen)}
    return keep(path, "pairs", {**result, "left_out": left_out(left), "data": data}, subject, untrained=False)


@torch.no_grad()
def _embedded(subject: Subject, ears: Hearing, pictures: ShardPictures, device: str) -> Iterator[tuple[Tensor, Tensor]]:
    """Unit embeddings of pictures and sounds [n, D], batch by batch, of the samples that can be used."""
    size = subject.size
    with (
        closing(Media(ears.sound, subject.frames, device=device, threads=THREADS)) as media,
        closing(Augmenter([CropSpec(1, size, (1, 1))], device=device, threads=THREADS, max_batch=BATCH)) as augmenter,
    ):
        for samples in pictures.samples(pictures.usable, BATCH):
            rows = [row for row in range(len(samples)) if row not in samples.reasons]
            while rows:
                try:
                    images, sounds = _opened(samples.take(rows), media, augmenter, size)
                except BadImages as error:
                    rows = [row for at, row in enumerate(rows) if at not in error.indices]
                    continue
                yield ears.objective.partners(ears.head, subject.trunk(images), sounds)
                break


def _opened(samples: Samples, media: Media, augmenter: Augmenter, size: int) -> tuple[Tensor, Tensor]:
    data = [sample for sample in samples.data if sample is not None]
    frames, sounds = media(data, middle(len(data)))
    view = centre(samples.height, samples.width, size, Preprocessing(size).resize)
    return cut(augmenter, frames, [view])[0], sounds
