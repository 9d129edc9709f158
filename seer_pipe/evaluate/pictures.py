"""Where the images of an evaluation come from: a shard set, or files as they lie in folders."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import NamedTuple, Protocol, TypeVar

import numpy as np
import pyarrow as pa
from PIL import Image, ImageOps

from seer_pipe.data.chunks import Encoded, Samples
from seer_pipe.data.order import MAX_CHUNK, Ints, Plan
from seer_pipe.data.stream import Stream
from seer_pipe.shards import ShardSet

T = TypeVar("T")
THREADS = 8  # that read
ORIENTATION = 0x0112  # the EXIF tag
#: Names of files that are taken for images where a folder is given.
SUFFIXES = {".jpg", ".jpeg", ".png", ".webp", ".bmp", ".tif", ".tiff", ".gif", ".jp2", ".avif"}


class Picture(NamedTuple):
    """One image, or sample of several members, as it is stored; ``data`` is None where it cannot be read, for
    ``reason``."""

    number: int
    height: int  # pixels
    width: int
    data: Encoded | None
    reason: str = ""


class Pictures(Protocol):
    """Images that have numbers from 0."""

    where: str

    def __len__(self) -> int: ...

    def read(self, numbers: Ints, batch: int) -> Iterator[list[Picture]]:
        """The images of these numbers, in this order and ``batch`` at a time."""
        ...

    def names(self, numbers: Ints) -> tuple[str, list[str]]:
        """What these images are called, and what such a name is: key or file."""
        ...


class ShardPictures:
    """The samples of a shard set, numbered as they stand in it."""

    def __init__(self, shards: ShardSet) -> None:
        self.shards, self.where = shards, shards.store.url

    def __len__(self) -> int:
        return len(self.shards)

    @property
    def usable(self) -> Ints:
        """The numbers of those that are not excluded."""
        return np.setdiff1d(np.arange(len(self)), self.shards.excluded)

    def names(self, numbers: Ints) -> tuple[str, list[str]]:
        keys = [self.shards.sidecar(i, ["key"])["key"] for i in range(len(self.shards.paths))]
        return "key", pa.chunked_array([chunk for column in keys for chunk in column.chunks]).take(numbers).to_pylist()

    def read(self, numbers: Ints, batch: int) -> Iterator[list[Picture]]:
        for found in self.samples(numbers, batch):
            columns = (found.places.sample.tolist(), found.height.tolist(), found.width.tolist(), found.data)
            rows = enumerate(zip(*columns, strict=True))
            yield [Picture(*row, found.reasons.get(i, "")) for i, row in rows]

    def samples(self, numbers: Ints, batch: int) -> Iterator[Samples]:
        """As they are stored, in this order and ``batch`` at a time."""
        in_order = bool((np.diff(numbers) > 0).all())  # then one read serves many of a chunk
        plan = Plan(self.shards.counts, 1, seed=0, chunk=MAX_CHUNK if in_order else 1)
        with closing(Stream(self.shards, plan, np.arange(1), threads=THREADS)) as stream:
            for start in range(0, len(numbers), batch):
                yield stream.read(plan.places(numbers[start : start + batch]))


class FilePictures:
    """Image files, numbered as they are given."""

    def __init__(self, files: Sequence[Path], where: str) -> None:
        self.files, self.where = list(files), where

    def __len__(self) -> int:
        return len(self.files)

    def names(self, numbers: Ints) -> tuple[str, list[str]]:
        return "file", [str(self.files[number].absolute()) for number in numbers]

    def read(self, numbers: Ints, batch: int) -> Iterator[list[Picture]]:
        with ThreadPoolExecutor(THREADS, thread_name_prefix="files") as pool:
            for start in range(0, len(numbers), batch):
                yield list(pool.map(self._one, numbers[start : start + batch].tolist()))

    def _one(self, number: int) -> Picture:
        file = self.files[number]
        try:
            data = file.read_bytes()
            with Image.open(io.BytesIO(data)) as image:
                height, width = image.height, image.width
                if image.format != "JPEG" or image.getexif().get(ORIENTATION, 1) != 1:
                    data, height, width = _upright(image)
        except Exception as error:  # a damaged file can raise anything
            return Picture(number, 0, 0, None, f"{file}: {error}")
        return Picture(number, height, width, np.frombuffer(data, np.uint8))


def _upright(image: Image.Image) -> tuple[bytes, int, int]:
    """The image as it is meant to be seen, without loss, in a format that DALI decodes; its height and width."""
    upright = ImageOps.exif_transpose(image).convert("RGB")
    buffer = io.BytesIO()
    upright.save(buffer, "PNG", compress_level=1)
    return buffer.getvalue(), upright.height, upright.width


def ahead(items: Iterator[T]) -> Iterator[T]:
    """The same, the next one being made in a thread while one is used."""
    with ThreadPoolExecutor(1, thread_name_prefix="ahead") as pool:
        coming = pool.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = pool.submit(next, items, None)
            yield item
