"""Every random number of every crop, as a pure function of (seed, epoch, sample, crop).

The recipe is that of SwAV and SEER: random resized crop, flip, colour jitter, grey, blur, solarise; each drawn
with torchvision's distributions. Nothing here touches a pixel: `draw` and `centre` say what is to be done, and
`seer_pipe.data.dali` does it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from itertools import permutations
from typing import Any, Literal, Self

import numpy as np
import numpy.typing as npt

from seer_pipe.config import Augment, Grid, Sound
from seer_pipe.data.grids import patches, shuffled
from seer_pipe.data.random import U64, derive_key, uniform

#: Raised whenever the same inputs would give other crops: other numbers here, or other pixels by docs/views.md.
VIEWS_VERSION = 1

Array = npt.NDArray[Any]
Range = tuple[float, float]

ATTEMPTS = 10  # torchvision's RandomResizedCrop gives up after so many boxes that do not fit
ORDERS = np.array(list(permutations(range(4))), dtype=np.int8)  # the orders of the four jitter steps

AS_PUBLISHED, CELLS = Augment(), Grid()
UNCHANGED = (1.0, 1.0, 1.0, 0.0)  # the brightness, contrast, saturation and hue that change nothing

# A crop's stream of numbers: its first places, and the four of each attempt at a box.
_FLIP, _JITTERED, _FACTORS, _ORDER, _GREY, _BLURRED, _SIGMA, _SOLARISE = 0, 1, 2, 6, 7, 8, 9, 10
_ONE_CHANNEL, _CHANNEL = 11, 12
_ATTEMPT = 16
#: Below the key of a patch, what is drawn of its box within it.
_WITHIN = 1
#: In the place of a crop's number: the moment that all views of a clip have in common; above it, those of further ones.
_MOMENT = 1 << 32


@dataclass(frozen=True)
class CropSpec:
    """`count` crops of `size` x `size` pixels, each of a share of the image's area drawn from `scale`.

    `layout`: what training sees of each: itself; all four `quarter_turns` (see `seer_pipe.data.layouts`); or patches of
    `size` x `size` pixels, one of each cell of a `grid` in it, row by row or shuffled into one of `orders` ([P, places]
    uint8: which cell's patch comes at which place; None: any). `picture`: which of a sample's pictures they are cut
    from.
    """

    count: int
    size: int
    scale: Range
    augment: Augment = AS_PUBLISHED
    layout: Literal["independent", "quarter_turns", "grid", "shuffled_grid"] = "independent"
    grid: Grid = CELLS
    orders: Array | None = field(default=None, compare=False)
    picture: int = 0

    @property
    def sizes(self) -> list[int]:
        """The pixels of a side of each crop that is drawn."""
        each = self.grid.side**2 if self.layout in ("grid", "shuffled_grid") else 1
        return [self.size] * (self.count * each)


@dataclass(frozen=True)
class Crops:
    """What is to be done for one crop of each of n images, in this order."""

    # [n, 4] top, left, height, width in pixels of the image: whole ones (int32), or float64 where it lies between them
    box: npt.NDArray[np.int32] | npt.NDArray[np.float64]
    flip: npt.NDArray[np.bool_]  # [n] left to right
    factors: npt.NDArray[np.float32]  # [n, 4] brightness, contrast, saturation (1: unchanged), hue in turns (0)
    order: npt.NDArray[np.int8]  # [n, 4] in which order those four are applied
    grey: npt.NDArray[np.int8]  # [n] 0: in colour, 1: luma, 2, 3, 4: red, green or blue in the place of all three
    sigma: npt.NDArray[np.float32]  # [n] of the Gaussian blur in pixels, 0: none
    solarise: npt.NDArray[np.bool_]  # [n] invert what is brighter than one half
    cell: npt.NDArray[np.int64]  # [n] of the grid that the crop is a patch of; 0 where it is none

    def __len__(self) -> int:
        return len(self.flip)

    def take(self, rows: Sequence[int] | Array) -> Self:
        """The same for some of the images, in the order of `rows`."""
        return type(self)(*(getattr(self, field.name)[np.asarray(rows, np.intp)] for field in fields(self)))


@dataclass(frozen=True)
class Moments:
    """Which picture and which sound of each of n clips."""

    at: npt.NDArray[np.float64]  # [n] of the picture, as a share of the clip's length, below 1
    shift: npt.NDArray[np.float64]  # [n] seconds from there to the middle of the sound
    gain: npt.NDArray[np.float64]  # [n] factor of the sound's amplitude


def draw_shares(seed: int, epoch: int | Array, sample: Array, look: int = 0) -> npt.NDArray[np.float64]:
    """When n clips are looked at, [n]: a share, below 1, of the time in which that may begin; as `draw`. ``look``: the
    number of the one that is meant, where there are several."""
    return uniform(derive_key(seed, epoch, np.asarray(sample), _MOMENT + look), 0)


def draw_moments(seed: int, epoch: int | Array, sample: Array, sound: Sound) -> Moments:
    """Those of n samples, each a function of (seed, epoch, its sample); as `draw`."""
    key = derive_key(seed, epoch, np.asarray(sample), _MOMENT)
    return Moments(
        at=draw_shares(seed, epoch, sample), shift=_between(uniform(key, 1), -sound.shift, sound.shift),
        gain=_between(uniform(key, 2), *sound.gain),
    )  # fmt: skip


def middle(n: int) -> Moments:
    """The evaluation view of n clips: the picture and the sound of the middle."""
    return Moments(np.full(n, 0.5), np.zeros(n), np.ones(n))


def draw(
    seed: int, epoch: int | Array, sample: Array, height: Array, width: Array, crops: Sequence[CropSpec]
) -> list[Crops]:
    """The views of n samples: one `Crops` a crop, in the order of `crops`, and one a patch of those in a grid.

    `sample` (integers that name the images within the data set), `height` and `width` (pixels, at least 1) are
    arrays of length n; `epoch` is the epoch of all of them, or of each. A crop depends on (seed, epoch, its sample,
    its place among the crops), on its own image's size and its own spec, and on nothing else.
    """
    specs = [spec for spec in crops for _ in range(spec.count)]
    image = derive_key(seed, epoch, np.asarray(sample))
    height, width = np.asarray(height, np.float64), np.asarray(width, np.float64)  # their product may pass 2^31
    return [view for at, spec in enumerate(specs) for view in _draw_crop(derive_key(image, at), height, width, spec)]


def centre(height: Array, width: Array, size: int, resize: int) -> Crops:
    """The evaluation view, torchvision's Resize and CenterCrop: short side to `resize` pixels, the long one rounded
    down, then the central `size` x `size`; as one box of the image, in fractions of its pixels.

    Raises ValueError where the crop would be larger than the resized image.
    """
    if size > resize:
        raise ValueError(f"a central crop of {size} pixels does not fit an image resized to {resize}")
    sides = np.stack([np.asarray(height), np.asarray(width)], axis=1).astype(np.int64)
    resized = resize * sides // sides.min(axis=1, keepdims=True)
    pixel = sides / resized  # of the resized image, in those of the image
    box = np.concatenate([np.rint((resized - size) / 2) * pixel, size * pixel], axis=1)
    n = len(box)
    no = np.zeros(n, bool)
    factors = np.tile(np.array(UNCHANGED, np.float32), (n, 1))
    order, none = np.tile(ORDERS[0], (n, 1)), np.zeros(n, np.int8)
    return Crops(box, no, factors, order, none, none.astype(np.float32), no, none.astype(np.int64))


def _draw_crop(key: U64, height: Array, width: Array, spec: CropSpec) -> list[Crops]:
    """One crop, or the patches of its grid. These are flipped together; colour and blur are each patch's own."""
    box, flip = _draw_box(key, height, width, spec.scale, spec.augment.ratio), uniform(key, _FLIP) < spec.augment.flip
    if spec.layout not in ("grid", "shuffled_grid"):
        return [_augmented(key, box, flip, np.zeros(len(flip), np.int64), spec.augment)]
    boxes = np.stack(patches(key, box, flip, spec.grid))
    places = np.tile(np.arange(len(boxes)), (len(flip), 1))
    cells = shuffled(key, len(boxes), spec.orders) if spec.layout == "shuffled_grid" else places
    images, found = np.arange(len(flip)), []
    for at, cell in enumerate(cells.T):
        own, box = derive_key(key, at), boxes[cell, images]
        if spec.grid.scale != (1, 1):
            inner = _draw_box(derive_key(own, _WITHIN), box[:, 2], box[:, 3], spec.grid.scale, spec.augment.ratio)
            box = np.concatenate([box[:, :2] + inner[:, :2], inner[:, 2:]], axis=1)
        found.append(_augmented(own, box, flip, cell, spec.augment))
    return found


def _augmented(
    key: U64, box: npt.NDArray[np.int32], flip: npt.NDArray[np.bool_], cell: npt.NDArray[np.int64], augment: Augment
) -> Crops:
    jittered = uniform(key, _JITTERED) < augment.jitter_p
    factors = np.stack([
        np.where(jittered, _between(uniform(key, _FACTORS + i), low, high), UNCHANGED[i])
        for i, (low, high) in enumerate(_jitter_ranges(augment.jitter))
    ], axis=1)  # fmt: skip
    order = (uniform(key, _ORDER) * len(ORDERS)).astype(np.intp)
    blurred = uniform(key, _BLURRED) < augment.blur_p
    one = np.where(uniform(key, _ONE_CHANNEL) < augment.channel_p, 2 + np.floor(3 * uniform(key, _CHANNEL)), 0)
    return Crops(
        box=box,
        flip=flip,
        factors=factors.astype(np.float32),
        order=ORDERS[order if augment.jitter_order == "random" else np.zeros_like(order)],
        grey=np.where(uniform(key, _GREY) < augment.grey_p, 1, one).astype(np.int8),
        sigma=np.where(blurred, _between(uniform(key, _SIGMA), *augment.blur_sigma), 0).astype(np.float32),
        solarise=uniform(key, _SOLARISE) < augment.solarise_p,
        cell=cell,
    )


def _jitter_ranges(jitter: tuple[float, float, float, float]) -> list[Range]:
    """Lowest and highest factor of each jitter step."""
    *strengths, hue = jitter
    return [(max(0.0, 1 - x), 1 + x) for x in strengths] + [(-hue, hue)]


def _between(u: Array, low: float, high: float) -> Array:
    return low + (high - low) * u


def _draw_box(key: U64, height: Array, width: Array, scale: Range, ratio: Range) -> npt.NDArray[np.int32]:
    """torchvision's RandomResizedCrop: area uniform, aspect log-uniform, the first of ten that fits the image."""
    box, fits = _attempt(key, height, width, 0, scale, ratio)
    again = np.flatnonzero(~fits)
    if len(again):  # few: all their further attempts at once, in columns
        column = key[again, None], height[again, None], width[again, None]
        boxes, fits = _attempt(*column, np.arange(1, ATTEMPTS), scale, ratio)
        box[:, again] = boxes[:, np.arange(len(again)), fits.argmax(axis=1)]
        lost = again[~fits.any(axis=1)]
        box[:, lost] = _fallback_box(height[lost], width[lost], ratio)
    return np.ascontiguousarray(box.T, dtype=np.int32)


def _attempt(
    key: U64, height: Array, width: Array, attempt: int | Array, scale: Range, ratio: Range
) -> tuple[Array, npt.NDArray[np.bool_]]:
    """The boxes of some attempts, [4, ...] of the broadcast shape, and whether each fits its image."""
    at = _ATTEMPT + 4 * attempt
    area = height * width * _between(uniform(key, at), *scale)
    aspect = np.exp(_between(uniform(key, at + 1), math.log(ratio[0]), math.log(ratio[1])))
    w, h = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (w > 0) & (h > 0) & (w <= width) & (h <= height)
    top = np.floor(uniform(key, at + 2) * (height - h + 1))
    left = np.floor(uniform(key, at + 3) * (width - w + 1))
    return np.stack([top, left, h, w]), fits


def _fallback_box(height: Array, width: Array, ratio: Range) -> Array:
    """The largest central box whose aspect is within the range, [4, n]."""
    h = np.where(width < height * ratio[0], np.rint(width / ratio[0]), height)
    w = np.where(width > height * ratio[1], np.rint(height * ratio[1]), width)
    return np.stack([(height - h) // 2, (width - w) // 2, h, w])
