"""What is done to the pixels of a crop once it has been cut and resized: colour, grey, blur, solarise, normalise.

The functions take their array library: numpy, which is the fastest there is for one crop that stays in the cache,
or torch, for many crops at once on a GPU. Arrays are planes [k, 3, height, width] of float32 in 0 to 255, changed in
place; amounts are numbers, or arrays [k, 1, 1, 1]. Each operation is elementwise or a sum of whole numbers, so the
values of a crop do not depend on the crops beside it.

The colour steps are those of torchvision.transforms.functional (adjust_brightness, _contrast, _saturation, _hue,
solarize, to grayscale with the weights of ITU-R BT.601), without its rounding to whole levels between the steps.
"""

import math
from collections.abc import Callable, Sequence
from itertools import product, zip_longest
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from seer_pipe.data.views import UNCHANGED, Array, Crops

MEAN = (123.675, 116.28, 103.53)  # of ImageNet's training images, .485 .456 .406 of 255
STD = (58.395, 57.12, 57.375)  # .229 .224 .225 of 255


#: What is to be done for one crop of one image, as both implementations take it: 112 bytes, each number at a multiple
#: of its own size. Truths are 0 or 1.
RECORD = np.dtype([
    ("box", np.float64, 4),  # top, left, height, width in pixels of the image, perhaps between them
    ("image", np.uint64),  # address of the decoded image: [height, width, 3] levels of uint8, without gaps
    ("within", np.int32, 4),  # top, left, bottom, right: the pixels of the image that the crop may be made from
    ("factors", np.float32, 4),  # brightness, contrast, saturation (1: unchanged), hue in turns (0)
    ("order", np.int32, 4),  # in which order those four are applied
    ("width", np.int32),  # of the image in pixels, so a row of it is 3 * width bytes
    ("radius", np.int32),  # of the blur in pixels: the kernel has 2 * radius + 1 taps
    ("sigma", np.float32),  # of the blur in pixels, 0: none
    ("flip", np.int32),
    ("grey", np.int32),
    ("solarise", np.int32),
])  # fmt: skip


def pack(views: Sequence[Crops], height: Array, width: Array, address: Array) -> npt.NDArray[np.void]:
    """The table of RECORD for n decoded images, [crops, n]: a row for each of `views`, in their order.

    `height`, `width` (pixels of each image as decoded) and `address` (of its first byte, where the kernel runs) are
    arrays of length n. Nothing in it depends on the other images.
    """
    table = np.zeros((len(views), len(address)), RECORD)
    table["image"], table["width"] = address, width
    for row, view in zip(table, views, strict=True):
        row["box"] = view.box
        if view.box.dtype.kind == "i":  # the box alone, as if it had been cut out first
            row["within"][:, :2] = view.box[:, :2]
            row["within"][:, 2:] = view.box[:, :2] + view.box[:, 2:]
        else:
            row["within"][:, 2], row["within"][:, 3] = height, width
        for name in ("factors", "order", "sigma", "flip", "grey", "solarise"):
            row[name] = getattr(view, name)
        row["radius"] = np.ceil(3 * view.sigma.astype(np.float64))
    return table


def grey(x: Any) -> Any:
    """Luma, [k, 1, height, width]."""
    y = x[:, 0:1] * 0.299
    y += x[:, 1:2] * 0.587
    y += x[:, 2:3] * 0.114
    return y


def adjust_brightness(xp: ModuleType, x: Any, factor: Any) -> None:
    x *= factor
    xp.clip(x, 0, 255, out=x)


def adjust_contrast(xp: ModuleType, x: Any, factor: Any) -> None:
    """Away from, or towards, the mean grey of the crop."""
    levels = xp.floor(grey(x) * 4096)  # whole numbers add up to the same sum in any order
    total = xp.sum(levels, axis=(1, 2, 3), dtype=xp.float64, keepdims=True)
    mean = xp.asarray(total / (4096 * x.shape[2] * x.shape[3]), dtype=xp.float32)
    x *= factor
    x += mean * (1 - factor)
    xp.clip(x, 0, 255, out=x)


def adjust_saturation(xp: ModuleType, x: Any, factor: Any) -> None:
    """Away from, or towards, each pixel's own grey."""
    y = grey(x)
    y *= 1 - factor
    x *= factor
    x += y
    xp.clip(x, 0, 255, out=x)


def adjust_hue(xp: ModuleType, x: Any, turns: Any) -> None:
    """Turn the hue of the HSV hexcone by `turns`, without a branch.

    With V the largest and m the smallest channel of a pixel and C = V - m, its hue in sixths of a turn from red is
    sign(g - b) * (1 + (g + b - r - m) / C), in [-3, 3]; and a channel whose own hue is c (red 0, green 2, blue -2)
    is m + C * clip(2 - d, 0, 1) with d the distance from the pixel's hue to c around the circle.
    """
    r, g, b = x[:, 0:1], x[:, 1:2], x[:, 2:3]
    low = xp.minimum(r, g)
    xp.minimum(low, b, out=low)
    chroma = xp.maximum(r, g)
    xp.maximum(chroma, b, out=chroma)
    chroma -= low
    hue = g + b
    hue -= r
    hue -= low
    hue /= xp.clip(chroma, 1e-6, None)  # a grey pixel has no hue, and needs none
    hue += 1
    xp.copysign(hue, g - b, out=hue)
    for channel, own in ((r, 0), (g, 2), (b, -2)):
        d = hue + ((6 * turns - own + 3) % 6 - 3)  # in [-6, 6]: 2 - (distance around the circle) is ||d| - 3| - 1
        xp.abs(d, out=d)
        d -= 3
        xp.abs(d, out=d)
        d -= 1
        xp.clip(d, 0, 1, out=d)
        d *= chroma
        xp.add(d, low, out=channel)


ADJUST = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)  # numbered as in `Crops.order`


def to_grey(xp: ModuleType, x: Any) -> None:
    x[:] = grey(x)


def solarise(xp: ModuleType, x: Any) -> None:
    """Invert what is at or above the middle of the range; there, and only there, the inverse is the smaller one."""
    xp.minimum(x, 255 - x, out=x)


def blur(xp: ModuleType, x: Any, weights: Sequence[Any]) -> None:
    """Gaussian blur by a symmetric separable kernel, of which `weights` is the half from the middle outwards.

    Borders are mirrored without repeating the edge, as torchvision.transforms.functional.gaussian_blur does.
    """
    for axis in (2, 3):
        _convolve(xp, x, weights, axis)


def blur_weights(sigma: float) -> list[float]:
    """The half kernel, from the middle to 3 sigma, of a Gaussian sampled at whole pixels; the whole sums to 1."""
    half = [math.exp(-0.5 * (i / sigma) ** 2) for i in range(math.ceil(3 * sigma) + 1)]
    total = 2 * sum(half) - half[0]
    return [weight / total for weight in half]


def _convolve(xp: ModuleType, x: Any, weights: Sequence[Any], axis: int) -> None:
    radius, size = len(weights) - 1, x.shape[axis]

    def part(array: Any, start: int, stop: int) -> Any:
        return array[(slice(None),) * axis + (slice(start, stop),)]

    before, after = part(x, 1, radius + 1), part(x, size - radius - 1, size - 1)
    padded = xp.concatenate((xp.flip(before, (axis,)), x, xp.flip(after, (axis,))), axis)
    x *= weights[0]
    pair = xp.empty_like(x)
    for i, weight in enumerate(weights[1:], start=1):
        left, right = radius - i, radius + i
        xp.add(part(padded, left, left + size), part(padded, right, right + size), out=pair)
        pair *= weight
        x += pair


def normalise(x: Any) -> None:
    """Zero mean and unit variance over ImageNet, channel by channel: what every public backbone expects."""
    for channel, (mean, std) in enumerate(zip(MEAN, STD, strict=True)):
        x[:, channel] -= mean
        x[:, channel] *= 1 / std


def finish_many(x: torch.Tensor, crop: Crops) -> None:
    """The same for all n images at once, torch [n, 3, size, size]: each step takes those which get it, no others."""

    def on_some(chosen: Any, change: Callable[..., None], amounts: Callable[[Any], Any] | None = None) -> None:
        rows = np.flatnonzero(chosen)
        if len(rows):
            where = torch.from_numpy(rows).to(x.device)
            part = x[where]
            change(torch, part, *([amounts(rows)] if amounts else []))
            x[where] = part

    def column(values: Any) -> torch.Tensor:
        return torch.from_numpy(np.asarray(values, np.float32)).to(x.device)[:, None, None, None]

    def factors(step: int) -> Callable[[Any], Any]:
        return lambda rows: column(crop.factors[rows, step])

    def half_kernels(rows: Any) -> list[torch.Tensor]:
        """Weight by weight; the shorter kernels are filled up with zeros, which add nothing."""
        halves = [blur_weights(sigma) for sigma in crop.sigma[rows].tolist()]
        return [column(weights) for weights in zip_longest(*halves, fillvalue=0.0)]

    for place, step in product(range(4), range(4)):
        chosen = (crop.order[:, place] == step) & (crop.factors[:, step] != UNCHANGED[step])
        on_some(chosen, ADJUST[step], factors(step))
    on_some(crop.grey, to_grey)
    on_some(crop.sigma > 0, blur, half_kernels)
    on_some(crop.solarise, solarise)
    normalise(x)
