"""Pictures of a handful of visual kinds, drawn from a seed.

Colours, scale, place, light and noise vary within a kind as much as between kinds, so that raw pixels do not
distinguish the kinds and what is learnt about them is structure.
"""

from __future__ import annotations

import colorsys
import math
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

Rng = np.random.Generator
Floats = npt.NDArray[np.float64]
Colour = tuple[int, int, int]


def picture(kind: str, seed: int) -> Image.Image:
    """An RGB picture of ``kind`` (a key of ``KINDS``), 96 to 288 pixels a side."""
    rng = np.random.default_rng([seed, sorted(KINDS).index(kind)])
    width, height = (int(x) for x in rng.integers(96, 289, 2))
    drawn = np.asarray(KINDS[kind](rng, width, height), np.float64)
    x, _ = _turned_grid(rng, width, height)
    light = 1 + rng.uniform(0, 0.5) * (x / max(width, height))  # brighter towards one side
    lit = drawn * light[..., None] + rng.normal(0, rng.uniform(0, 12), drawn.shape)
    return Image.fromarray(lit.clip(0, 255).astype(np.uint8))


def _colours(rng: Rng, count: int) -> list[Colour]:
    """Colours of any hue whose brightness differs enough to be seen against each other."""
    values = np.linspace(0.2, 1.0, count)
    rng.shuffle(values)
    made = [colorsys.hsv_to_rgb(rng.uniform(), rng.uniform(0, 1), v) for v in values]
    return [(int(255 * r), int(255 * g), int(255 * b)) for r, g, b in made]


def _turned_grid(rng: Rng, width: int, height: int) -> tuple[Floats, Floats]:
    """Coordinates in pixels from the middle, turned by a random angle."""
    y, x = np.mgrid[:height, :width].astype(np.float64)
    x, y = x - width / 2, y - height / 2
    angle = rng.uniform(0, math.pi)
    return x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)


def _two_tone(rng: Rng, mask: npt.NDArray[np.bool_]) -> Image.Image:
    first, second = np.array(_colours(rng, 2), np.uint8)
    return Image.fromarray(np.where(mask[..., None], first, second))


def _stripes(rng: Rng, width: int, height: int) -> Image.Image:
    x, _ = _turned_grid(rng, width, height)
    period = rng.uniform(10, 40)
    return _two_tone(rng, (x / period + rng.uniform()) % 1 < rng.uniform(0.35, 0.65))


def _checks(rng: Rng, width: int, height: int) -> Image.Image:
    x, y = _turned_grid(rng, width, height)
    side = rng.uniform(8, 30)
    return _two_tone(rng, (np.floor(x / side) + np.floor(y / side)) % 2 == 0)


def _dots(rng: Rng, width: int, height: int) -> Image.Image:
    x, y = _turned_grid(rng, width, height)
    period = rng.uniform(14, 40)
    shift_x, shift_y = rng.uniform(size=2)
    inside = ((x / period + shift_x) % 1 - 0.5) ** 2 + ((y / period + shift_y) % 1 - 0.5) ** 2
    return _two_tone(rng, inside < rng.uniform(0.22, 0.38) ** 2)


def _rings(rng: Rng, width: int, height: int) -> Image.Image:
    x, y = _turned_grid(rng, width, height)
    away = np.hypot(x - rng.uniform(-0.3, 0.3) * width, y - rng.uniform(-0.3, 0.3) * height)
    return _two_tone(rng, (away / rng.uniform(12, 36) + rng.uniform()) % 1 < rng.uniform(0.35, 0.65))


def _clouds(rng: Rng, width: int, height: int) -> Image.Image:
    """Noise of several sizes, blended between two colours."""
    total = np.zeros((height, width))
    for octave in range(4):
        cells = int(rng.integers(2, 4)) * 2**octave
        grid = Image.fromarray(rng.uniform(0, 255, (cells, cells)).astype(np.uint8))
        total += np.asarray(grid.resize((width, height), Image.Resampling.BICUBIC), np.float64) / 2**octave
    share = (total - total.min()) / np.ptp(total)
    first, second = np.array(_colours(rng, 2), np.float64)
    return Image.fromarray((first + (second - first) * share[..., None]).astype(np.uint8))


def _bricks(rng: Rng, width: int, height: int) -> Image.Image:
    x, y = _turned_grid(rng, width, height)
    long, high, joint = rng.uniform(28, 60), rng.uniform(10, 22), rng.uniform(2, 5)
    row = np.floor(y / high)
    return _two_tone(rng, ((x + row % 2 * long / 2) % long < joint) | (y % high < joint))


def _landscape(rng: Rng, width: int, height: int) -> Image.Image:
    """Sky with a sun, and hills one before the other."""
    sky, sun, *hills = _colours(rng, 5)
    image = Image.new("RGB", (width, height), sky)
    pen = ImageDraw.Draw(image)
    radius, centre = rng.uniform(0.06, 0.15) * height, rng.uniform(0.1, 0.9) * width
    up = rng.uniform(0.1, 0.35) * height
    pen.ellipse([centre - radius, up - radius, centre + radius, up + radius], sun)
    for level, colour in enumerate(hills):
        x = np.arange(0, width + 8, 4)
        phases, waves = rng.uniform(0, 6.3, 2), rng.uniform(1, 4, 2)
        line = sum(np.sin(x / width * 6.3 * w + p) for w, p in zip(waves, phases, strict=True))
        y = height * (0.45 + 0.17 * level + rng.uniform(-0.05, 0.05)) + line * height * 0.05
        pen.polygon([*zip(x.tolist(), y.tolist(), strict=True), (width, height), (0, height)], colour)
    return image


def _page(rng: Rng, width: int, height: int) -> Image.Image:
    """Lines of words, as on a page seen from afar."""
    paper, ink = _colours(rng, 2)
    image = Image.new("RGB", (width, height), paper)
    pen = ImageDraw.Draw(image)
    line = rng.uniform(9, 18)
    y = rng.uniform(4, 20)
    while y < height:
        x, end = rng.uniform(4, 20), width * (rng.uniform(0.3, 0.95) if rng.uniform() < 0.2 else 0.95)
        while x < end:
            word = rng.uniform(0.5, 4) * line
            pen.rectangle([x, y, min(x + word, end), y + line * 0.45], ink)
            x += word + line * 0.5
        y += line
    return image


KINDS: dict[str, Callable[[Rng, int, int], Image.Image]] = {
    "bricks": _bricks,
    "checks": _checks,
    "clouds": _clouds,
    "dots": _dots,
    "landscape": _landscape,
    "page": _page,
    "rings": _rings,
    "stripes": _stripes,
}
