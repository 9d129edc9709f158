"""Videos of discs that move before a ground, all of many colours."""

from itertools import product
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from tests.ingest.shapes import texture
from tests.media import mp4

SIDE, FRAMES, RADIUS = 96, 24, 14


def video(seed: int, discs: int = 3) -> bytes:
    """A second and a half at 16 frames per second: each disc goes its own way, and turns at the border."""
    rng = np.random.default_rng(seed)
    ground = patchwork(rng) // 4 * 3 + texture(SIDE, SIDE, seed) // 4
    colours = rng.integers(0, 256, (discs, 3))
    places, steps = rng.uniform(RADIUS, SIDE - RADIUS, (discs, 2)), rng.uniform(-1.5, 1.5, (discs, 2))
    frames = []
    for number in range(FRAMES):
        frame = ground.copy()
        way = np.abs((places + number * steps - RADIUS) % (4 * SIDE))
        for (x, y), colour in zip(RADIUS + triangle(way, SIDE - 2 * RADIUS), colours, strict=True):
            cv2.circle(frame, (round(float(x)), round(float(y))), RADIUS, colour.tolist(), -1)
        frames.append(frame)
    return mp4(frames, crf="18")


def patchwork(rng: np.random.Generator) -> npt.NDArray[np.uint8]:
    """Nine fields of different colours, [SIDE, SIDE, 3]."""
    colours = np.array(list(product((0, 127, 255), repeat=3)), np.uint8)
    fields = colours[rng.permutation(len(colours))[:9]].reshape(3, 3, 3)
    return np.asarray(cv2.resize(fields, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST))


def triangle(x: npt.NDArray[np.float64], length: float) -> npt.NDArray[np.float64]:
    """There and back between 0 and ``length``."""
    return np.abs((x + length) % (2 * length) - length)


def write_videos(folder: Path, count: int) -> Path:
    folder.mkdir(parents=True)
    for seed in range(count):
        (folder / f"{seed:03d}.mp4").write_bytes(video(seed))
    return folder
