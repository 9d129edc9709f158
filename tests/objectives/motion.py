"""Clips whose class is the way that a disc moves, of which no single frame tells it."""

from pathlib import Path

import numpy as np

from tests.davis import Pixels
from tests.media import mp4, write_pairs

SIDE, FRAMES, RATE, RADIUS = 32, 24, 8, 5  # pixels, frames, frames a second
WAYS = {"right": (0, 1), "left": (0, -1), "down": (1, 0), "up": (-1, 0)}


def moving(way: str, dice: np.random.Generator) -> list[Pixels]:
    """A white disc on a torus: where it is at any moment is anywhere, whatever its way; it steps 3 to 4 pixels."""
    place, step = dice.uniform(0, SIDE, 2), dice.uniform(3, 4) * np.array(WAYS[way])
    grid = np.stack(np.meshgrid(np.arange(SIDE), np.arange(SIDE), indexing="ij"), axis=2)
    frames = []
    for number in range(FRAMES):
        apart = np.abs(grid - (place + number * step)) % SIDE
        distance = np.linalg.norm(np.minimum(apart, SIDE - apart), axis=2)
        grey = 255 * np.clip(RADIUS + 0.5 - distance, 0, 1)
        frames.append(np.repeat(grey[..., None], 3, axis=2).astype(np.uint8))
    return frames


def motion_set(root: Path, count: int, seed: int) -> Path:
    """So many clips; the folder of each is its way."""
    dice, samples = np.random.default_rng(seed), []
    for number in range(count):
        way = sorted(WAYS)[number % len(WAYS)]
        samples.append((f"{way}/{number}.mp4", {"mp4": mp4(moving(way, dice), RATE, crf="10")}, SIDE, SIDE))
    return write_pairs(root, samples, media="video")
