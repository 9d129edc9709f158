"""Small pictures out of a shard set, for pages and sheets."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import torch
from PIL import Image, ImageOps

from seer_pipe import config as settings
from seer_pipe.data.dali import BadImages
from seer_pipe.data.media import still
from seer_pipe.data.pixels import MEAN, STD
from seer_pipe.data.seen import Maker
from seer_pipe.shards import ShardSet
from seer_pipe.train.build import build_crops

COLUMNS = ["key", "source", "offset", "length", "crc32c", "width", "height"]


def rows_of(shards: ShardSet, samples: Sequence[int]) -> Iterator[tuple[int, int, dict[str, object]]]:
    """For each of ``samples`` (numbers in the set): it, its shard and its sidecar row; a sidecar is read once."""
    wanted = np.unique(np.asarray(samples, np.int64))
    shard_of = shards.shards_of(wanted)
    for shard in np.unique(shard_of).tolist():
        here = wanted[shard_of == shard]
        table = shards.sidecar(shard, COLUMNS).take(here - shards.starts[shard])
        for sample, row in zip(here.tolist(), table.to_pylist(), strict=True):
            yield sample, shard, row


def thumbnails(shards: ShardSet, samples: Sequence[int], side: int) -> dict[int, Image.Image]:
    """The middle of each image, ``side`` pixels square; what cannot be read is skipped."""
    found = {}
    for sample, shard, row in rows_of(shards, samples):
        with suppress(OSError):
            found[sample] = thumbnail(shards.read(shard, row), side)
    return found


def thumbnail(sample: bytes, side: int) -> Image.Image:
    """The middle of an image, or of a clip's frame in the middle, ``side`` pixels square."""
    with Image.open(io.BytesIO(still(np.frombuffer(sample, np.uint8)).tobytes())) as image:
        image.draft("RGB", (2 * side, 2 * side))  # a large JPEG is decoded small
        return ImageOps.fit(image.convert("RGB"), (side, side))


def data_uri(image: Image.Image, quality: int = 80) -> str:
    """The picture as a JPEG inside a URL."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode()


def crops(shards: ShardSet, config: settings.Config, samples: Sequence[int]) -> list[list[Image.Image]]:
    """Every crop of each image in the first epoch, as the network sees it, and the spectrogram of its sound where that
    hears it; what does not decode is skipped."""
    views = config.views
    maker = Maker(build_crops(config), views.sound, views.frames, seed=config.seed, threads=1, max_batch=1)
    found = []
    try:
        for sample, shard, row in rows_of(shards, samples):
            try:
                data = np.frombuffer(shards.read(shard, row), np.uint8)
                numbers = [np.array([value]) for value in (0, sample, row["height"], row["width"])]
                seen = maker([data], *numbers)
                found.append([as_seen(x[0]) for x in seen.crops] + [as_heard(x[0]) for x in seen.sounds])
            except (OSError, BadImages):
                continue
    finally:
        maker.close()
    return found


def as_seen(crop: torch.Tensor) -> Image.Image:
    """A normalised crop [3, size, size], back in colours; of a clip [3, frames, size, size] its frames side by side."""
    if crop.ndim == 4:
        crop = torch.cat(crop.unbind(1), dim=2)
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    levels = (crop * std + mean).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).numpy())


def as_heard(sound: torch.Tensor) -> Image.Image:
    """A spectrogram [1, columns, bands], four spreads below the level black and four above it white; low tones are at
    the bottom."""
    levels = (sound[0] * 32 + 128).round().clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.T.flip(0).contiguous().numpy()).convert("RGB")
