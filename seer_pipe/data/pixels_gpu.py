"""Crops on a GPU: five Triton kernels for all crops of one size, whatever their images and views are.

What is computed is defined in docs/views.md, and tests/data/reference.py is the same in float64. Here it is float32,
but for the places of the cut. A thread makes one pixel; a program makes BLOCK pixels of one crop, or finds its mean.

    _cut      the box, resized along rows and columns at once, flipped     -> levels, uint8
    _mean     the steps of the jitter before contrast, and their mean luma -> means, float32
    _colour   jitter and grey                                              -> planes, float32
    _blur     along the columns, of the crops that are blurred             -> blurred, float32
    _finish   blur along the rows, solarise, normalise                     -> the crops, as the network takes them

No cut is kept between rows and columns: each thread sums the rows that its pixel needs. That reads an image about twice
as often, out of the cache, and saves memory whose size would depend on the boxes. Nothing of a crop depends on the
others: the blocks lie in each crop in the same way, and no sum is shared.

With TRITON_INTERPRET=1 at the first import of triton the same kernels run on a CPU, slowly. Loops whose length is read
from the table are `while`, for the interpreter has no `range` of such a number under numpy 2.4.
"""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import triton
import triton.language as tl

from seer_pipe.data.pixels import MEAN, RECORD, STD

IMAGES = 64  # of a launch: bounds the memory between the kernels, by 27 bytes for each pixel of each crop
BLOCK = tl.constexpr(1024)  # pixels


def _at(name: str) -> Any:
    """Where a number lies in a record, in units of its own size."""
    kind, at = RECORD.fields[name][:2]  # type: ignore[index]
    return tl.constexpr(at // kind.base.itemsize)


_RECORD = tl.constexpr(RECORD.itemsize // 8)  # the table is read as int64
_BOX, _IMAGE, _WITHIN, _FACTORS, _ORDER = _at("box"), _at("image"), _at("within"), _at("factors"), _at("order")
_WIDTH, _RADIUS, _SIGMA = _at("width"), _at("radius"), _at("sigma")
_FLIP, _GREY, _SOLARISE = _at("flip"), _at("grey"), _at("solarise")
_HALF_UP = tl.constexpr(0.5 + 2.0**-10)  # a half that is a little less in float32 goes up as well
_MEANS = [tl.constexpr(mean) for mean in MEAN]
_SCALES = [tl.constexpr(1 / std) for std in STD]
_M0, _M1, _M2 = _MEANS
_S0, _S1, _S2 = _SCALES
_TYPES = {torch.float32: tl.float32, torch.float16: tl.float16, torch.bfloat16: tl.bfloat16}


def make(table: npt.NDArray[np.void], out: Sequence[torch.Tensor], layout: torch.memory_format) -> None:
    """Make the crops of ``table`` (`pack`, [crops, n], with addresses on the device) into ``out``: for each of its rows
    a tensor [n, 3, size, size] in ``layout``, all of one type. Images and crops must live until the current stream has
    come past; nothing here waits.
    """
    for kernel, grid, arguments in launches(table, out, layout):
        kernel[grid](**arguments)


def launches(
    table: npt.NDArray[np.void], out: Sequence[torch.Tensor], layout: torch.memory_format
) -> Iterator[tuple[Any, tuple[int, ...], dict[str, Any]]]:
    """Each kernel to be launched, its grid and its arguments: the same ones for any images and views of the same n.

    Crops of one size that follow each other are made together. The table goes to the device in one copy.
    """
    device, kind, crops, n = out[0].device, out[0].dtype, len(out), table.shape[1]
    to_device = torch.empty(table.nbytes // 8 + crops, dtype=torch.int64, pin_memory=device.type == "cuda")
    to_device[:-crops] = torch.from_numpy(table.reshape(-1).view(np.int64))
    to_device[-crops:] = torch.tensor([x.data_ptr() for x in out])
    records = to_device.to(device, non_blocking=True)
    first = 0
    for size, run in groupby(x.shape[-1] for x in out):
        count = len(list(run))
        slots = count * min(n, IMAGES)
        levels = torch.empty(slots, 3, size, size, dtype=torch.uint8, device=device)
        planes, blurred = torch.empty(2, slots, 3, size, size, device=device)
        means = torch.empty(slots, device=device)
        for image in range(0, n, IMAGES):
            one = (min(n - image, IMAGES), count)
            grid = (*one, triton.cdiv(size * size, BLOCK.value))
            common = {"table": records, "first": first, "image": image, "n": n, "size": size}
            yield (
                _cut,
                grid,
                common | {"levels": levels, "num_warps": 8},
            )  # with 4 it takes 207 registers a thread on H100
            yield _mean, one, common | {"levels": levels, "means": means}
            yield _colour, grid, common | {"levels": levels, "means": means, "planes": planes}
            yield _blur, grid, common | {"planes": planes, "blurred": blurred}
            yield _finish, grid, common | {
                "planes": planes, "blurred": blurred, "outs": records[-crops:],
                "channels_last": layout == torch.channels_last, "kind": _TYPES[kind],
            }  # fmt: skip
        first += count


_kernel = triton.jit(do_not_specialize=["first", "image", "n"], do_not_specialize_on_alignment=["outs"])


@triton.jit
def _record(table, first, image, n):
    """The program's crop in the table."""
    at = (first + tl.program_id(1)).to(tl.int64) * n + image + tl.program_id(0)
    return table + at * _RECORD


@triton.jit
def _slot(size: tl.constexpr):
    """Where the program's crop begins in what lies between the kernels, in numbers."""
    return (tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)).to(tl.int64) * (3 * size * size)


@triton.jit
def _ints(record):
    return record.to(tl.pointer_type(tl.int32), bitcast=True)


@triton.jit
def _floats(record):
    return record.to(tl.pointer_type(tl.float32), bitcast=True)


@triton.jit
def _three(planes, pixel, inside, size: tl.constexpr):
    """Red, green and blue of some pixels, as float32."""
    area: tl.constexpr = size * size
    red = tl.load(planes + pixel, inside, other=0).to(tl.float32)
    green = tl.load(planes + area + pixel, inside, other=0).to(tl.float32)
    blue = tl.load(planes + 2 * area + pixel, inside, other=0).to(tl.float32)
    return red, green, blue


@triton.jit
def _put_three(planes, pixel, inside, red, green, blue, size: tl.constexpr):
    area: tl.constexpr = size * size
    kind: tl.constexpr = planes.dtype.element_ty
    tl.store(planes + pixel, red.to(kind), inside)
    tl.store(planes + area + pixel, green.to(kind), inside)
    tl.store(planes + 2 * area + pixel, blue.to(kind), inside)


@triton.jit
def _window(start, length, place, size: tl.constexpr):
    """The filter along one axis at some places of the crop: first pixel, how far its middle lies off, reach."""
    pixel = length / size
    reach = tl.maximum(pixel, 1.0)
    middle = start + (place + 0.5) * pixel
    begin = tl.floor(middle - reach + 0.5)
    return begin.to(tl.int32), (begin + 0.5 - middle).to(tl.float32), reach.to(tl.float32)


@triton.jit
def _weight(k, begin, distance, reach, low, high):
    """Of the window's pixel ``k``, before the sum is divided out; only pixels [low, high) count."""
    weight = tl.maximum(1 - tl.abs(distance + k) / reach, 0.0)
    return tl.where((begin + k >= low) & (begin + k < high), weight, 0.0)


@triton.jit
def _total(taps, begin, distance, reach, low, high):
    total = distance * 0
    k = 0
    while k < taps:
        total += _weight(k, begin, distance, reach, low, high)
        k += 1
    return total


@_kernel
def _cut(table, first, image, n, levels, size: tl.constexpr):
    record = _record(table, first, image, n)
    box, ints = record.to(tl.pointer_type(tl.float64), bitcast=True) + _BOX, _ints(record)
    top, left, bottom, right = (
        tl.load(ints + _WITHIN), tl.load(ints + _WITHIN + 1), tl.load(ints + _WITHIN + 2), tl.load(ints + _WITHIN + 3),
    )  # fmt: skip
    source = tl.load(record + _IMAGE).to(tl.pointer_type(tl.uint8))
    width = tl.load(ints + _WIDTH).to(tl.int64)
    pixel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < size * size
    last = tl.minimum(pixel, size * size - 1)  # what stands past the end works on it as well, and writes nothing
    y, x = last // size, last % size
    x = tl.where(tl.load(ints + _FLIP) != 0, size - 1 - x, x)
    y0, dy, reach_y = _window(tl.load(box), tl.load(box + 2), y, size)
    x0, dx, reach_x = _window(tl.load(box + 1), tl.load(box + 3), x, size)
    rows, columns = tl.ceil(2 * reach_y).to(tl.int32), tl.ceil(2 * reach_x).to(tl.int32)
    total_y, total_x = _total(rows, y0, dy, reach_y, top, bottom), _total(columns, x0, dx, reach_x, left, right)
    red, green, blue = dy * 0, dy * 0, dy * 0
    j = 0
    while j < rows:
        row = y0 + j
        weight_y = _weight(j, y0, dy, reach_y, top, bottom) / total_y
        r, g, b = dx * 0, dx * 0, dx * 0
        k = 0
        while k < columns:
            weight = _weight(k, x0, dx, reach_x, left, right)
            at = source + (row.to(tl.int64) * width + (x0 + k)) * 3
            counts = inside & (weight > 0) & (weight_y > 0)
            r += weight * tl.load(at, counts, other=0).to(tl.float32)
            g += weight * tl.load(at + 1, counts, other=0).to(tl.float32)
            b += weight * tl.load(at + 2, counts, other=0).to(tl.float32)
            k += 1
        red += weight_y * tl.floor(r / total_x + _HALF_UP)
        green += weight_y * tl.floor(g / total_x + _HALF_UP)
        blue += weight_y * tl.floor(b / total_x + _HALF_UP)
        j += 1
    red, green, blue = tl.floor(red + _HALF_UP), tl.floor(green + _HALF_UP), tl.floor(blue + _HALF_UP)
    _put_three(levels + _slot(size), pixel, inside, red, green, blue, size)


@triton.jit
def _luma(red, green, blue):
    return 0.299 * red + 0.587 * green + 0.114 * blue


@triton.jit
def _clamp(x):
    return tl.minimum(tl.maximum(x, 0.0), 255.0)


@triton.jit
def _remainder(x):
    """Of a division by 6, from 0 up."""
    return x - 6 * tl.floor(x / 6)


@triton.jit
def _turned(hue, shift, low, chroma):
    return low + chroma * _between(tl.abs(tl.abs(hue + shift) - 3) - 1)


@triton.jit
def _between(x):
    return tl.minimum(tl.maximum(x, 0.0), 1.0)


@triton.jit
def _hue(red, green, blue, turns):
    """Turn the hue of the HSV hexcone, without a branch.

    With V the largest and m the smallest channel of a pixel and C = V - m, its hue in sixths of a turn from red is
    sign(g - b) * (1 + (g + b - r - m) / C), in [-3, 3]; and a channel whose own hue is c (red 0, green 2, blue -2)
    is m + C * clip(2 - d, 0, 1) with d the distance from the pixel's hue to c around the circle.
    """
    low = tl.minimum(tl.minimum(red, green), blue)
    chroma = tl.maximum(tl.maximum(red, green), blue) - low
    hue = (green + blue - red - low) / tl.maximum(chroma, 1e-6) + 1  # a grey pixel has no hue, and needs none
    hue = tl.where(green < blue, -hue, hue)
    sixths = 6 * turns + 3  # in [-6, 6] with the hue: 2 - distance is ||hue + shift| - 3| - 1
    return (
        _turned(hue, _remainder(sixths) - 3, low, chroma),
        _turned(hue, _remainder(sixths - 2) - 3, low, chroma),
        _turned(hue, _remainder(sixths + 2) - 3, low, chroma),
    )


@triton.jit
def _adjust(red, green, blue, step, factor, mean):
    """One step of the jitter: 0 brightness, 1 contrast, 2 saturation, 3 hue."""
    if step == 3:
        if factor != 0:
            red, green, blue = _hue(red, green, blue, factor)
    else:
        shift = tl.where(step == 2, _luma(red, green, blue), tl.where(step == 1, mean, 0.0)) * (1 - factor)
        red, green, blue = _clamp(red * factor + shift), _clamp(green * factor + shift), _clamp(blue * factor + shift)
    return red, green, blue


@_kernel
def _mean(table, first, image, n, levels, means, size: tl.constexpr):
    """The mean luma that contrast needs, of a crop as it is when contrast's turn comes; one program for a crop."""
    record = _record(table, first, image, n)
    order, factors = _ints(record) + _ORDER, _floats(record) + _FACTORS
    if tl.load(factors + 1) != 1:
        total = tl.zeros([BLOCK], tl.float32)
        begin = 0
        while begin < size * size:
            pixel = begin + tl.arange(0, BLOCK)
            inside = pixel < size * size
            red, green, blue = _three(levels + _slot(size), pixel, inside, size)
            before = True
            for place in tl.static_range(4):
                step = tl.load(order + place)
                before = before & (step != 1)
                if before:
                    red, green, blue = _adjust(red, green, blue, step, tl.load(factors + step), 0.0)
            total += tl.where(inside, _luma(red, green, blue), 0.0)
            begin += BLOCK
        slot = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
        tl.store(means + slot, tl.sum(total, axis=0) / (size * size))


@_kernel
def _colour(table, first, image, n, levels, means, planes, size: tl.constexpr):
    record = _record(table, first, image, n)
    order, factors = _ints(record) + _ORDER, _floats(record) + _FACTORS
    pixel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < size * size
    red, green, blue = _three(levels + _slot(size), pixel, inside, size)
    slot = tl.program_id(1) * tl.num_programs(0) + tl.program_id(0)
    mean = tl.load(means + slot, tl.load(factors + 1) != 1, other=0.0)
    for place in tl.static_range(4):
        step = tl.load(order + place)
        red, green, blue = _adjust(red, green, blue, step, tl.load(factors + step), mean)
    grey = tl.load(_ints(record) + _GREY)
    if grey != 0:
        one = tl.where(grey == 2, red, tl.where(grey == 3, green, blue))
        luma = tl.where(grey == 1, _luma(red, green, blue), one)
        red, green, blue = luma, luma, luma
    _put_three(planes + _slot(size), pixel, inside, red, green, blue, size)


@triton.jit
def _mirror(at, size: tl.constexpr):
    """A place past the border, in the mirror that stands on the edge pixel."""
    if size == 1:
        return at * 0
    else:
        at = tl.abs(at) % (2 * size - 2)
        return tl.minimum(at, 2 * size - 2 - at)


@triton.jit
def _gaussian(k, sigma):
    return tl.exp(-0.5 * (k / sigma) * (k / sigma))


@triton.jit
def _blurred(planes, y, x, down: tl.constexpr, radius, sigma, inside, size: tl.constexpr):
    """Some pixels blurred along one axis: down the columns, or along the rows."""
    red, green, blue = _three(planes, y * size + x, inside, size)
    total = sigma * 0 + 1
    k = 1
    while k <= radius:
        weight = _gaussian(k, sigma)
        if down:
            before, after = _mirror(y - k, size) * size + x, _mirror(y + k, size) * size + x
        else:
            before, after = y * size + _mirror(x - k, size), y * size + _mirror(x + k, size)
        r, g, b = _three(planes, before, inside, size)
        red, green, blue = red + weight * r, green + weight * g, blue + weight * b
        r, g, b = _three(planes, after, inside, size)
        red, green, blue = red + weight * r, green + weight * g, blue + weight * b
        total += 2 * weight
        k += 1
    return red / total, green / total, blue / total


@_kernel
def _blur(table, first, image, n, planes, blurred, size: tl.constexpr):
    record = _record(table, first, image, n)
    radius = tl.load(_ints(record) + _RADIUS)
    if radius > 0:
        sigma = tl.load(_floats(record) + _SIGMA)
        pixel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
        inside = pixel < size * size
        slot = _slot(size)
        red, green, blue = _blurred(planes + slot, pixel // size, pixel % size, True, radius, sigma, inside, size)
        _put_three(blurred + slot, pixel, inside, red, green, blue, size)


@_kernel
def _finish(
    table, first, image, n, planes, blurred, outs, size: tl.constexpr, channels_last: tl.constexpr, kind: tl.constexpr
):
    record = _record(table, first, image, n)
    radius, sigma = tl.load(_ints(record) + _RADIUS), tl.load(_floats(record) + _SIGMA)
    pixel = tl.program_id(2) * BLOCK + tl.arange(0, BLOCK)
    inside = pixel < size * size
    if radius > 0:
        red, green, blue = _blurred(
            blurred + _slot(size), pixel // size, pixel % size, False, radius, sigma, inside, size
        )
    else:
        red, green, blue = _three(planes + _slot(size), pixel, inside, size)
    if tl.load(_ints(record) + _SOLARISE) != 0:  # the smaller one: from the middle up, and only there, the inverse
        red, green, blue = tl.minimum(red, 255 - red), tl.minimum(green, 255 - green), tl.minimum(blue, 255 - blue)
    red, green, blue = (red - _M0) * _S0, (green - _M1) * _S1, (blue - _M2) * _S2
    out = tl.load(outs + first + tl.program_id(1)).to(tl.pointer_type(kind))
    out += (image + tl.program_id(0)).to(tl.int64) * (3 * size * size)
    if channels_last:
        tl.store(out + 3 * pixel, red.to(kind), inside)
        tl.store(out + 3 * pixel + 1, green.to(kind), inside)
        tl.store(out + 3 * pixel + 2, blue.to(kind), inside)
    else:
        _put_three(out, pixel, inside, red, green, blue, size)
