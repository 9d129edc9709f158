"""Patches out of a crop's box, in rows and columns: boxes of the picture like any other crop's.

Nothing but its content tells a patch's place: all patches of a grid are of one size, and each moves in its cell by an
offset of its own.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from seer_pipe.config import Grid
from seer_pipe.data.random import U64, derive_key, uniform

# Counters of a grid's own stream from here on are the order of its patches; of a patch's, two are its offset.
_ORDER, _OFFSET = 64, 16


def patches(
    key: U64, box: npt.NDArray[np.int32], mirrored: npt.NDArray[np.bool_], grid: Grid
) -> list[npt.NDArray[np.int32]]:
    """The box of each cell's patch, row by row: [n, 4] top, left, height, width in whole pixels, within ``box`` [n, 4].

    ``key`` [n]: of the grid of each image. ``mirrored`` [n]: its patches are flipped, so its first column is the right
    one. A box of fewer pixels than cells has patches of one pixel, some of them alike.
    """
    start, length = box[:, :2].astype(np.int64), box[:, 2:].astype(np.int64)
    side = np.maximum(1, (length * grid.patch / grid.side).astype(np.int64))
    apart = side * grid.side <= length
    step = np.where(apart, length / grid.side, (length - side) / (grid.side - 1))
    room = np.where(apart, length // grid.side - side, 0)
    moves = (grid.jitter * room).astype(np.int64)
    found = []
    for cell in range(grid.side**2):
        row, column = divmod(cell, grid.side)
        place = np.stack([np.full(len(box), row), np.where(mirrored, grid.side - 1 - column, column)], axis=1)
        drawn = uniform(derive_key(key, cell)[:, None], np.arange(_OFFSET, _OFFSET + 2))
        offset = (room - moves) // 2 + (drawn * (moves + 1)).astype(np.int64)
        found.append(np.concatenate([start + (place * step).astype(np.int64) + offset, side], axis=1).astype(np.int32))
    return found


def shuffled(key: U64, cells: int, orders: npt.NDArray[np.uint8] | None) -> npt.NDArray[np.int64]:
    """Which cell's patch comes at which place, [n, places]: any order, or one of ``orders`` [P, places]."""
    if orders is None:
        return np.argsort(uniform(key[:, None], np.arange(_ORDER, _ORDER + cells)), axis=1)
    return orders[(uniform(key, _ORDER) * len(orders)).astype(np.intp)].astype(np.int64)
