"""Videos of discs that move before a ground, all of many colours."""

from itertools import product
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt

from tests.davis import Pixels
from tests.ingest.shapes import texture
from tests.media import mp4

SIDE, FRAMES, RADIUS = 96, 24, 14


def video(seed: int) -> bytes:
    """A second and a half at 16 frames per second."""
    return mp4([frame for frame, _ in scene(seed)], crf="18")


def scene(seed: int, frames: int = FRAMES, discs: int = 3) -> list[tuple[Pixels, Pixels]]:
    """The frames of a video with masks that number the discs from 1: each goes its own way, and turns at the border."""
    rng = np.random.default_rng(seed)
    ground = patchwork(rng) // 4 * 3 + texture(SIDE, SIDE, seed) // 4
    colours = rng.integers(0, 256, (discs, 3))
    places, steps = rng.uniform(RADIUS, SIDE - RADIUS, (discs, 2)), rng.uniform(-1.5, 1.5, (discs, 2))
    found = []
    for number in range(frames):
        frame, mask = ground.copy(), np.zeros((SIDE, SIDE), np.uint8)
        way = triangle(places + number * steps - RADIUS, SIDE - 2 * RADIUS)
        for disc, (x, y) in enumerate(RADIUS + way):
            place = round(float(x)), round(float(y))
            cv2.circle(frame, place, RADIUS, colours[disc].tolist(), -1)
            cv2.circle(mask, place, RADIUS, disc + 1, -1)
        found.append((frame, mask))
    return found


def patchwork(rng: np.random.Generator) -> Pixels:
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
