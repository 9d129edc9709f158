"""Clips of a drawn shape before a drawn ground, both with a texture."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from seer_pipe.shards import ShardWriter, write_manifest
from seer_pipe.store import open_store
from tests.media import mp4

HEIGHT, WIDTH = 128, 172  # no multiple of what decoders align rows to
Place = Callable[[int], tuple[float, float]]  # x, y of a shape's middle in a frame, by its number


def texture(height: int, width: int, seed: int) -> npt.NDArray[np.uint8]:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    smooth = cv2.GaussianBlur(noise, (0, 0), 2)
    return cv2.normalize(smooth, None, 0, 255, cv2.NORM_MINMAX)


def clip(
    shapes: Sequence[Place] = (),
    pan: Place = lambda n: (0, 0),
    *,
    frames: int = 21,
    radius: int = 20,
    seed: int = 0,
    colour: tuple[int, int, int] | None = None,
) -> bytes:
    """``shapes``: discs, of a ``colour`` or of many; ``pan``: how far the ground has moved in each frame."""
    ground = texture(HEIGHT + 64, WIDTH + 64, seed)
    disc = texture(2 * radius + 1, 2 * radius + 1, seed + 1)
    if colour is not None:
        disc = (disc // 4 + np.array(colour, np.uint8) // 4 * 3).astype(np.uint8)
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    round_ = rows**2 + columns**2 <= radius**2
    drawn = []
    for number in range(frames):
        across, down = (32 - round(shift) for shift in pan(number))
        frame = ground[down : down + HEIGHT, across : across + WIDTH].copy()
        for place in shapes:
            x, y = map(round, place(number))
            frame[y - radius : y + radius + 1, x - radius : x + radius + 1][round_] = disc[round_]
        drawn.append(frame)
    return mp4(drawn, crf="18")


def write_clips(root: Path, clips: Sequence[bytes], shards: int = 1, media: str = "video") -> Path:
    """A shard set of clips, as an ingest of videos leaves it, but for columns that nothing here reads."""
    store, paths = open_store(root), [f"{shard:05d}.tar" for shard in range(shards)]
    for shard, path in enumerate(paths):
        writer = ShardWriter(store, path)
        for number, data in list(enumerate(clips))[shard::shards]:
            members: dict[str, Any] = {"mp4": data, "json": b"{}"}
            writer.add_members(
                f"{number:06d}", members, source=f"kind/{number}.mp4", width=WIDTH, height=HEIGHT, phash=None
            )
        writer.commit()
    write_manifest(store, paths, media=media)
    return root
