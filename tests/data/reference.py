"""The pixels of a crop as they are defined (docs/views.md), in float64 and one step after the other.

Nothing here is fast and nothing is shared with the implementations: what they are held to must be readable.
A picture is [height, width, 3] and a crop [size, size, 3], both in levels from 0 to 255.
"""

import math

import numpy as np

from seer_pipe.data.views import Crops

LUMA = np.array([0.299, 0.587, 0.114])  # ITU-R BT.601
MEAN = 255 * np.array([0.485, 0.456, 0.406])  # of ImageNet
STD = 255 * np.array([0.229, 0.224, 0.225])
NEARLY = 2.0**-10  # so little below one half counts as one half


def make(picture: np.ndarray, views: Crops, row: int, size: int) -> np.ndarray:
    """Everything that `views` says of image `row`, done to it: the normalised crop, [3, size, size]."""
    x = cut(picture, views.box[row], size).astype(np.float64)
    return finish(x[:, ::-1] if views.flip[row] else x, views, row).transpose(2, 0, 1)


def finish(x: np.ndarray, views: Crops, row: int) -> np.ndarray:
    """All that follows cut and flip."""
    for step in views.order[row]:
        x = JITTER[step](x, float(views.factors[row, step]))
    if views.grey[row]:
        one = luma(x) if views.grey[row] == 1 else x[:, :, [views.grey[row] - 2]]
        x = np.repeat(one, 3, axis=2)
    if views.sigma[row] > 0:
        x = blur(x, float(views.sigma[row]))
    if views.solarise[row]:
        x = np.where(x < 127.5, x, 255 - x)
    return (x - MEAN) / STD


def cut(picture: np.ndarray, box: np.ndarray, size: int) -> np.ndarray:
    """The box resized to `size` pixels square: along the rows, then along the columns, whole levels after each."""
    top, left, height, width = box.tolist()
    if box.dtype.kind == "i":  # the box is all there is; else the picture goes on around it
        picture, top, left = picture[top : top + height, left : left + width], 0, 0
    across = whole(np.einsum("xj,ijc->ixc", weights(left, width, size, picture.shape[1]), picture.astype(np.float64)))
    return whole(np.einsum("yi,ixc->yxc", weights(top, height, size, picture.shape[0]), across)).astype(np.uint8)


def weights(start: float, length: float, size: int, pixels: int) -> np.ndarray:
    """[size, pixels]: a triangle around each output pixel's place, as wide as that pixel, or as one of the picture."""
    pixel = length / size
    places = start + (np.arange(size) + 0.5) * pixel
    distance = np.abs(np.arange(pixels) + 0.5 - places[:, None])
    triangle = np.maximum(0, 1 - distance / max(pixel, 1))
    return triangle / triangle.sum(axis=1, keepdims=True)


def whole(x: np.ndarray) -> np.ndarray:
    return np.floor(x + 0.5 + NEARLY)


def luma(x: np.ndarray) -> np.ndarray:
    return x @ LUMA[:, None]


def adjust_brightness(x: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(x * factor, 0, 255)


def adjust_contrast(x: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(luma(x).mean() * (1 - factor) + x * factor, 0, 255)


def adjust_saturation(x: np.ndarray, factor: float) -> np.ndarray:
    return np.clip(luma(x) * (1 - factor) + x * factor, 0, 255)


def adjust_hue(x: np.ndarray, turns: float) -> np.ndarray:
    """To hue, saturation and value of the hexcone, and back."""
    r, g, b = np.moveaxis(x, 2, 0)
    value, low = x.max(axis=2), x.min(axis=2)
    chroma = value - low
    colour = chroma > 0
    safe = np.where(colour, chroma, 1)
    sixths = np.select([value == r, value == g], [(g - b) / safe, 2 + (b - r) / safe], 4 + (r - g) / safe)
    sixths = (sixths + 6 * turns) % 6
    sector, part = np.floor(sixths).astype(int) % 6, sixths % 1
    falling, rising = value - chroma * part, low + chroma * part
    turned = [
        (value, rising, low), (falling, value, low), (low, value, rising),
        (low, falling, value), (rising, low, value), (value, low, falling),
    ]  # fmt: skip
    channels = [np.choose(sector, [colours[c] for colours in turned]) for c in range(3)]
    return np.where(colour[:, :, None], np.stack(channels, axis=2), x)


JITTER = (adjust_brightness, adjust_contrast, adjust_saturation, adjust_hue)  # numbered as in `Crops.order`


def blur(x: np.ndarray, sigma: float) -> np.ndarray:
    """A Gaussian sampled at whole pixels up to 3 sigma; past a border stands the mirror image, without the edge."""
    radius = math.ceil(3 * sigma)
    kernel = np.exp(-0.5 * (np.arange(-radius, radius + 1) / sigma) ** 2)
    kernel /= kernel.sum()
    for axis in (0, 1):
        padding = [(radius, radius) if a == axis else (0, 0) for a in range(3)]
        padded, size = np.pad(x, padding, mode="reflect"), x.shape[axis]
        x = sum(w * padded.take(range(i, i + size), axis) for i, w in enumerate(kernel))
    return x
