"""Videos with the masks of their objects, as the folder of DAVIS 2017 has them.

ImageSets/2017/val.txt       the names of the sequences, one a line
JPEGImages/480p/SEQ/*.jpg    their frames, in the order of their names
Annotations/480p/SEQ/*.png   of each frame a palette PNG: the number of the object at each pixel, 0 for none
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image

from seer_pipe.errors import UserError

LIST, FRAMES, MASKS = "ImageSets/2017/val.txt", "JPEGImages/480p", "Annotations/480p"
VOID = 255  # of a mask: not decided, which the benchmark takes for none

Numbers = npt.NDArray[np.uint8]  # [h, w], of objects


@dataclass(frozen=True)
class Sequence:
    name: str
    frames: list[Path]
    masks: list[Path]  # of each frame

    def objects(self) -> int:
        """How many the first mask names: the greatest number in it. UserError where there are none."""
        count = int(self.mask(0).max())
        if not count:
            raise UserError(f"{self.masks[0]}: names no object: the first mask is what is carried on")
        return count

    def mask(self, number: int) -> Numbers:
        """Of a frame. UserError where it is no mask, or of another size than the frame."""
        file = self.masks[number]
        try:
            with Image.open(file) as image:
                mode, numbers = image.mode, np.array(image)
            with Image.open(self.frames[number]) as frame:
                size = (frame.height, frame.width)
        except OSError as error:
            raise UserError(f"{file}: {error}") from None
        if mode not in ("P", "L"):
            raise UserError(f"{file}: its pixels are {mode}, and no numbers of objects: a palette PNG is wanted")
        if numbers.shape != size:
            raise UserError(f"{file}: {numbers.shape[1]}x{numbers.shape[0]} pixels, its frame {size[1]}x{size[0]}")
        numbers[numbers == VOID] = 0
        return numbers

    def palette(self) -> list[int] | None:
        """The colours of the first mask's numbers."""
        with Image.open(self.masks[0]) as image:
            return image.getpalette()


def open_davis(folder: Path) -> list[Sequence]:
    """The sequences of the list. UserError where the folder is laid out in another way."""
    listed = folder / LIST
    try:
        names = listed.read_text().split()
    except OSError as error:
        raise UserError(
            f"{listed}: {error.strerror}: --data is to be the folder of DAVIS 2017, which holds it"
        ) from None
    if not names:
        raise UserError(f"{listed}: names no sequence")
    return [_sequence(folder, name) for name in names]


def _sequence(folder: Path, name: str) -> Sequence:
    frames = sorted((folder / FRAMES / name).glob("*.jpg"))
    if len(frames) < 3:
        raise UserError(
            f"{folder / FRAMES / name}: {len(frames)} frames (*.jpg); 3 or more are wanted, for the first is given and "
            "the last is not judged"
        )
    masks = [folder / MASKS / name / f"{frame.stem}.png" for frame in frames]
    missing = [mask for mask in masks if not mask.is_file()]
    if missing:
        raise UserError(f"{missing[0]}: no such file, and {len(missing) - 1} more are missing: each frame has its mask")
    return Sequence(name, frames, masks)
