"""The map's pictures: small ones of all that it shows, and the tiles that a browser fetches.

OUT/tiles/LEVEL/X-Y.jpg: TILE x TILE cells of SIDE pixels. Level by level as many pixels a picture and more pictures,
so that they can be made out at any zoom.
"""

from __future__ import annotations

import itertools
import os
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import numpy as np
import numpy.typing as npt
import simplejpeg

from seer_pipe.data.order import Ints
from seer_pipe.report.shown import Levels
from seer_pipe.report.thumbnails import rows_of, thumbnail
from seer_pipe.shards import ShardSet

TILE, SIDE, QUALITY = 8, 64, 72  # cells of a tile a side; pixels of a cell
AT_ONCE = 256  # images that are read together
Pixels = npt.NDArray[np.uint8]


def small_pictures(
    shards: ShardSet, samples: Sequence[int], folder: Path, given: Callable[[int, bytes], None]
) -> Pixels:
    """The middle of each image, [n, SIDE, SIDE, 3], as a map of a nameless file in ``folder``; grey where it cannot be
    read. ``given``: is given each sample as it is stored, with its place in ``samples``, by several threads."""
    order = np.argsort(samples, kind="stable")
    sorted_samples = np.asarray(samples, np.int64)[order]
    with tempfile.TemporaryFile(dir=folder) as file:
        file.truncate(len(samples) * SIDE * SIDE * 3)
        pictures: Pixels = np.memmap(file, np.uint8, "r+", shape=(len(samples), SIDE, SIDE, 3))

    def put(found: tuple[int, int, dict[str, object]]) -> None:
        sample, shard, row = found
        at = int(order[np.searchsorted(sorted_samples, sample)])
        pictures[at] = 128
        try:
            stored = shards.read(shard, row)
        except OSError:
            return
        given(at, stored)  # what fails there is not the picture's fault
        with suppress(OSError):
            pictures[at] = np.asarray(thumbnail(stored, SIDE))

    rows = rows_of(shards, samples)
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        while batch := list(itertools.islice(rows, AT_ONCE)):
            list(pool.map(put, batch))
    return pictures


def brightness(pictures: Pixels) -> npt.NDArray[np.float64]:
    """Mean luma [n] of each, 0 to 1 (the weights of BT.601), of every fourth pixel across and down."""
    means = np.zeros((len(pictures), 3))
    for start in range(0, len(pictures), AT_ONCE):
        means[start : start + AT_ONCE] = pictures[start : start + AT_ONCE, ::4, ::4].mean(axis=(1, 2))
    return means @ np.array([0.299, 0.587, 0.114]) / 255


def draw_tiles(pictures: Pixels, cell: Ints, top: Levels, levels: int, out: Path) -> int:
    """Write the tiles of all levels into ``out``; how many they are."""
    count = 0
    for level in range(levels):
        folder = out / str(level)
        folder.mkdir(parents=True)
        here = np.flatnonzero(top <= level)
        at = cell[here] >> (levels - 1 - level)
        tile = at // TILE
        order = np.lexsort((tile[:, 1], tile[:, 0]))
        edges = np.flatnonzero(np.any(np.diff(tile[order], axis=0), axis=1)) + 1
        for members in np.split(order, edges):
            canvas = np.zeros((TILE * SIDE, TILE * SIDE, 3), np.uint8)
            for member in members:
                x, y = at[member] % TILE * SIDE
                canvas[y : y + SIDE, x : x + SIDE] = pictures[here[member]]
            x, y = tile[members[0]]
            (folder / f"{x}-{y}.jpg").write_bytes(simplejpeg.encode_jpeg(canvas, QUALITY, colorsubsampling="420"))
            count += 1
    return count
