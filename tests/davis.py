"""DAVIS's layout, of drawn frames and masks."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

Pixels = npt.NDArray[np.uint8]
PALETTE = [0, 0, 0, 128, 0, 0, 0, 128, 0, *[7] * 759]


def write_davis(root: Path, name: str, frames: Sequence[tuple[Pixels, Pixels]]) -> Path:
    """A sequence of frames [h, w, 3] with their masks [h, w], one more of those in the folder ``root``."""
    for number, (pixels, mask) in enumerate(frames):
        for folder in ("JPEGImages", "Annotations"):
            (root / folder / "480p" / name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(root / f"JPEGImages/480p/{name}/{number:05d}.jpg", quality=95)
        image = Image.fromarray(mask).convert("P")
        image.putpalette(PALETTE)
        image.save(root / f"Annotations/480p/{name}/{number:05d}.png")
    (root / "ImageSets/2017").mkdir(parents=True, exist_ok=True)
    with (root / "ImageSets/2017/val.txt").open("a") as listed:
        listed.write(f"{name}\n")
    return root
