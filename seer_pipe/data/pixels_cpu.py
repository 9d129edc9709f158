"""Crops on a CPU: one compiled kernel makes any number of them from decoded images, without the interpreter lock.

What is computed is defined in docs/views.md, and tests/data/reference.py is the same in float64. Here it is float32.
A crop is made from start to end while it is in the core's own cache. Its planes are gone over in blocks, so that the
jitter's steps follow each other in the first level; only contrast, which needs a mean of the whole crop, and blur,
which needs neighbours, begin another round. Nothing of a crop depends on the crops that are made in the same call.
"""

import math
import sys
from collections.abc import Callable
from functools import cache
from typing import Any

import numpy as np
import torch
from llvmlite import ir
from numba import carray, from_dtype, njit, types
from numba.core import cgutils, event
from numba.extending import intrinsic

from seer_pipe.data.pixels import MEAN, RECORD, STD

FLOAT32, FLOAT16, BFLOAT16 = 0, 1, 2  # what the kernel writes
KINDS = {torch.float32: FLOAT32, torch.float16: FLOAT16, torch.bfloat16: BFLOAT16}
BLOCK = 1024  # pixels whose three planes are gone over step by step
F = np.float32
ZERO, ONE, THREE = F(0), F(1), F(3)
FULL, HALF_UP = F(255), F(0.5 + 2.0**-10)  # a half that is a little less in float32 goes up as well
RED, GREEN, BLUE = F(0.299), F(0.587), F(0.114)  # luma
MEANS, SCALES = np.array(MEAN, F), np.array([1 / std for std in STD], F)

_step = njit(nogil=True, fastmath={"contract", "nsz", "nnan", "ninf", "reassoc"}, error_model="numpy")


@intrinsic
def _pointer(typingctx: Any, address: Any, kind: Any) -> Any:
    """An address as a pointer to numbers of the type of ``kind``."""
    target = types.CPointer(kind.dtype)

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(target))

    return target(address, kind), generate


@intrinsic
def _weighted_pixel(typingctx: Any, source: Any, weights: Any, count: Any) -> Any:
    """The sum of ``count`` RGB pixels that follow each other from address ``source``, each by its float32 weight:
    whole levels, a byte each, and a byte of no meaning. It reads one byte past the last pixel.

    Written in vectors, for no compiler finds them in a loop over three channels.
    """

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        source, weights, count = arguments
        bytes_, whole, lanes = (ir.VectorType(kind, 4) for kind in (ir.IntType(8), ir.IntType(32), ir.FloatType()))
        word = source.type

        def same(value: Any) -> Any:
            one = builder.insert_element(ir.Constant(lanes, ir.Undefined), value, ir.Constant(ir.IntType(32), 0))
            return builder.shuffle_vector(one, ir.Constant(lanes, ir.Undefined), ir.Constant(whole, [0] * 4))

        total = cgutils.alloca_once_value(builder, ir.Constant(lanes, [0.0] * 4))
        with cgutils.for_range(builder, count) as loop:
            pixel_at = builder.add(source, builder.mul(loop.index, ir.Constant(word, 3)))
            weight_at = builder.add(weights, builder.mul(loop.index, ir.Constant(word, 4)))
            pixel = builder.load(builder.inttoptr(pixel_at, bytes_.as_pointer()), align=1)
            weight = builder.load(builder.inttoptr(weight_at, ir.FloatType().as_pointer()), align=4)
            levels = builder.sitofp(builder.zext(pixel, whole), lanes)
            product = builder.fmul(levels, same(weight), flags=("contract",))
            builder.store(builder.fadd(builder.load(total), product, flags=("contract",)), total)
        rounded = builder.fadd(builder.load(total), ir.Constant(lanes, [float(HALF_UP)] * 4))
        levels = builder.trunc(builder.fptosi(rounded, whole), bytes_)
        return builder.bitcast(levels, ir.IntType(32))

    return types.int32(types.int64, types.int64, types.int64), generate


@intrinsic
def _next(typingctx: Any, counter: Any) -> Any:
    """The number at address ``counter``, which becomes one more, whichever threads do so at once."""

    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        whole = ir.IntType(64)
        place = builder.inttoptr(arguments[0], whole.as_pointer())
        return builder.atomic_rmw("add", place, ir.Constant(whole, 1), "monotonic")

    return types.int64(types.int64), generate


@_step
def _weigh(start, length, first, stop, weights, begin):
    """The filter along one axis: ``weights[x, :n]`` for the pixels from ``begin[x]`` on; returns n, the same for all x.

    ``start``, ``length``: of the box. Only pixels [first, stop) may be used.
    """
    size = len(begin)
    pixel = length / size
    reach = max(pixel, 1.0)
    n = min(stop - first, math.ceil(2 * reach) + 1)
    for x in range(size):
        middle = start + (x + 0.5) * pixel
        at = min(max(math.floor(middle - reach + 0.5), first), stop - n)
        total = 0.0
        for k in range(n):
            total += max(0.0, 1 - abs(at + k + 0.5 - middle) / reach)
        for k in range(n):
            weights[x, k] = max(0.0, 1 - abs(at + k + 0.5 - middle) / reach) / total
        begin[x] = at
    return n


@_step
def _cut(record, planes, size):
    """The box resized, along its rows and then its columns, and flipped: into planes [3, size * size]."""
    top, left, bottom, right = record.within[0], record.within[1], record.within[2], record.within[3]
    across, down = np.empty(size, np.int64), np.empty(size, np.int64)
    taps = 2 * math.ceil(max(record.box[2], record.box[3]) / size) + 3
    weights_x, weights_y = np.empty((size, taps), np.float32), np.empty((size, taps), np.float32)
    nx = _weigh(record.box[1], record.box[3], left, right, weights_x, across)
    ny = _weigh(record.box[0], record.box[2], top, bottom, weights_y, down)
    first, last = down[0], down[size - 1] + ny
    rows = np.empty((last - first, size), np.int32)  # pixels of four bytes, the last of no meaning
    pitch = 3 * np.int64(record.width)
    image = np.int64(record.image)
    end = np.empty(3 * (right - left) + 1, np.uint8)  # a copy of the last row, for a byte past it is read
    for y in range(first, last):
        source = image + y * pitch + 3 * left
        if y == last - 1:
            row = carray(_pointer(source, np.uint8), 3 * (right - left))
            end[:-1] = row
            source = np.int64(end.ctypes.data)
        to, step = (size - 1, -1) if record.flip else (0, 1)
        for x in range(size):
            weights = np.int64(weights_x.ctypes.data) + 4 * taps * x
            rows[y - first, to] = _weighted_pixel(source + 3 * (across[x] - left), weights, nx)
            to += step
    levels = rows.view(np.uint8)
    total = np.empty(4 * size, np.float32)
    red, green, blue = planes[0], planes[1], planes[2]
    for y in range(size):
        total[:] = HALF_UP
        for k in range(ny):
            weight, row = weights_y[y, k], levels[down[y] + k - first]
            for i in range(4 * size):
                total[i] += weight * F(row[i])
        at = y * size
        for x in range(size):
            red[at + x] = F(np.int32(total[4 * x]))
            green[at + x] = F(np.int32(total[4 * x + 1]))
            blue[at + x] = F(np.int32(total[4 * x + 2]))


@_step
def _scale(plane, factor, shift):
    for i in range(len(plane)):
        plane[i] = min(max(plane[i] * factor + shift, ZERO), FULL)


@_step
def _saturation(red, green, blue, factor):
    rest = ONE - factor
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        luma = (r * RED + g * GREEN + b * BLUE) * rest
        red[i] = min(max(r * factor + luma, ZERO), FULL)
        green[i] = min(max(g * factor + luma, ZERO), FULL)
        blue[i] = min(max(b * factor + luma, ZERO), FULL)


@_step
def _hue(red, green, blue, turns):
    """Turn the hue of the HSV hexcone, without a branch.

    With V the largest and m the smallest channel of a pixel and C = V - m, its hue in sixths of a turn from red is
    sign(g - b) * (1 + (g + b - r - m) / C), in [-3, 3]; and a channel whose own hue is c (red 0, green 2, blue -2)
    is m + C * clip(2 - d, 0, 1) with d the distance from the pixel's hue to c around the circle.
    """
    sixths = 6 * np.float64(turns) + 3  # in [-6, 6] with the hue: 2 - distance is ||hue + shift| - 3| - 1
    shift_r, shift_g, shift_b = F(sixths % 6 - 3), F((sixths - 2) % 6 - 3), F((sixths + 2) % 6 - 3)
    for i in range(len(red)):
        r, g, b = red[i], green[i], blue[i]
        low = min(min(r, g), b)
        chroma = max(max(r, g), b) - low
        hue = (g + b - r - low) / max(chroma, F(1e-6)) + ONE  # a grey pixel has no hue, and needs none
        hue = -hue if g < b else hue
        red[i] = low + chroma * min(max(abs(abs(hue + shift_r) - THREE) - ONE, ZERO), ONE)
        green[i] = low + chroma * min(max(abs(abs(hue + shift_g) - THREE) - ONE, ZERO), ONE)
        blue[i] = low + chroma * min(max(abs(abs(hue + shift_b) - THREE) - ONE, ZERO), ONE)


@_step
def _grey(red, green, blue, kind):
    r, g, b = (RED, GREEN, BLUE) if kind == 1 else (F(kind == 2), F(kind == 3), F(kind == 4))
    for i in range(len(red)):
        luma = red[i] * r + green[i] * g + blue[i] * b
        red[i] = luma
        green[i] = luma
        blue[i] = luma


@_step
def _sum_of_luma(red, green, blue):
    total = ZERO
    for i in range(len(red)):
        total += red[i] * RED + green[i] * GREEN + blue[i] * BLUE
    return np.float64(total)


@_step
def _jitter(red, green, blue, step, factors, mean):
    factor = factors[step]
    if step == 2 and factor != ONE:
        _saturation(red, green, blue, factor)
    elif step == 3 and factor != ZERO:
        _hue(red, green, blue, factor)
    elif step < 2 and factor != ONE:  # brightness, contrast
        shift = mean * (ONE - factor) if step else ZERO
        _scale(red, factor, shift)
        _scale(green, factor, shift)
        _scale(blue, factor, shift)


@_step
def _colour(record, planes):
    """Jitter and grey, block by block; up to contrast in a first round that finds its mean."""
    factors, order, pixels = record.factors, record.order, planes.shape[1]
    if not record.grey and factors[0] == ONE and factors[1] == ONE and factors[2] == ONE and factors[3] == ZERO:
        return
    turn, mean = 0, ZERO  # the place from which on steps are still to be done
    if factors[1] != ONE:
        while order[turn] != 1:
            turn += 1
        total = 0.0
        for at in range(0, pixels, BLOCK):
            stop = min(at + BLOCK, pixels)
            red, green, blue = planes[0, at:stop], planes[1, at:stop], planes[2, at:stop]
            for place in range(turn):
                _jitter(red, green, blue, order[place], factors, mean)
            total += _sum_of_luma(red, green, blue)
        mean = F(total / pixels)
    for at in range(0, pixels, BLOCK):
        stop = min(at + BLOCK, pixels)
        red, green, blue = planes[0, at:stop], planes[1, at:stop], planes[2, at:stop]
        for place in range(turn, 4):
            _jitter(red, green, blue, order[place], factors, mean)
        if record.grey:
            _grey(red, green, blue, record.grey)


@_step
def _mirror(at, size):
    """A place past the border, in the mirror that stands on the edge pixel."""
    if size == 1:
        return 0
    at = abs(at) % (2 * size - 2)
    return min(at, 2 * size - 2 - at)


@_step
def _blur_row(plane, size, y, kernel, padded, row):
    """Row ``y`` of the blurred plane; ``kernel`` from the middle outwards."""
    radius = len(kernel) - 1
    middle = padded[radius : radius + size]
    own = plane[y * size : (y + 1) * size]
    for x in range(size):
        middle[x] = own[x] * kernel[0]
    for k in range(1, radius + 1):
        above, below, weight = _mirror(y - k, size) * size, _mirror(y + k, size) * size, kernel[k]
        before, after = plane[above : above + size], plane[below : below + size]
        for x in range(size):
            middle[x] += (before[x] + after[x]) * weight
    for k in range(1, radius + 1):
        padded[radius - k] = middle[_mirror(-k, size)]
        padded[radius + size - 1 + k] = middle[_mirror(size - 1 + k, size)]
    for x in range(size):
        row[x] = middle[x] * kernel[0]
    for k in range(1, radius + 1):
        weight, before, after = kernel[k], padded[radius - k :], padded[radius + k :]
        for x in range(size):
            row[x] += (before[x] + after[x]) * weight


@_step
def _finish(record, planes, size, out, channels_last, kind):
    """Blur, solarise, normalise and write, row by row."""
    radius = record.radius
    kernel = np.ones(radius + 1, np.float64)
    for k in range(1, radius + 1):
        kernel[k] = math.exp(-0.5 * (k / np.float64(record.sigma)) ** 2)
    half = (kernel / (2 * kernel.sum() - 1)).astype(np.float32)
    padded, rows = np.empty(size + 2 * radius, np.float32), np.empty((3, size), np.float32)
    for y in range(size):
        for channel in range(3):
            row, mean, scale = rows[channel], MEANS[channel], SCALES[channel]
            if radius:
                _blur_row(planes[channel], size, y, half, padded, row)
            else:
                row[:] = planes[channel, y * size : (y + 1) * size]
            if record.solarise:
                for x in range(size):
                    row[x] = min(row[x], FULL - row[x])
            for x in range(size):
                row[x] = (row[x] - mean) * scale
        _write(rows, size, y, out, channels_last, kind)


@_step
def _write(rows, size, y, out, channels_last, kind):
    if kind == FLOAT32:
        _place(rows, size, y, carray(_pointer(out, np.float32), 3 * size * size), channels_last)
    else:
        narrow = np.empty((3, size), np.uint16)
        if kind == FLOAT16:
            _halves(rows.ravel(), rows.view(np.int32).ravel(), narrow.ravel())
        else:
            _brain_floats(rows.view(np.int32).ravel(), narrow.ravel())
        _place(narrow, size, y, carray(_pointer(out, np.uint16), 3 * size * size), channels_last)


@_step
def _place(rows, size, y, out, channels_last):
    if channels_last:
        red, green, blue, pixels = rows[0], rows[1], rows[2], out[3 * y * size : 3 * (y + 1) * size]
        for x in range(size):
            pixels[3 * x], pixels[3 * x + 1], pixels[3 * x + 2] = red[x], green[x], blue[x]
    else:
        for channel in range(3):
            at = (channel * size + y) * size
            out[at : at + size] = rows[channel]


@_step
def _brain_floats(bits, out):
    """The upper halves of float32, nearest and ties to even."""
    for i in range(len(bits)):
        b = bits[i]
        out[i] = np.uint16(np.int32(b + 0x7FFF + ((b >> 16) & 1)) >> 16)


@_step
def _halves(values, bits, out):
    """float16 of float32, nearest and ties to even, of values that it can hold. ``bits``: those of ``values``."""
    for i in range(len(bits)):
        sign, b = (bits[i] >> 16) & 0x8000, bits[i] & 0x7FFFFFFF
        normal = np.int32(b - 0x38000000 + 0xFFF + ((b >> 13) & 1)) >> 13  # another bias of the exponent
        subnormal = np.int32(np.rint(abs(values[i]) * F(2**24)))
        out[i] = np.uint16(sign | (normal if b >= 0x38800000 else subnormal))


def _make(table, outs, sizes, taken, channels_last, kind):
    """Make the crops of ``table`` [crops, n] until no image is left: that of image i at ``outs`` + i crops of its size.

    ``outs``: addresses, int64 [crops]; ``sizes``: pixels, int64 [crops]; ``taken``: how many images were begun, int64
    [1], from which all threads that call it with the same one draw; ``kind``: FLOAT32, FLOAT16 or BFLOAT16.
    """
    largest = sizes.max()
    memory = np.empty(3 * largest * largest, np.float32)
    width = 4 if kind == FLOAT32 else 2
    while True:
        i = _next(np.int64(taken.ctypes.data))
        if i >= table.shape[1]:
            return
        for c in range(table.shape[0]):
            size, record = sizes[c], table[c, i]
            planes = memory[: 3 * size * size].reshape((3, size * size))
            _cut(record, planes, size)
            _colour(record, planes)
            _finish(record, planes, size, outs[c] + i * width * 3 * size * size, channels_last, kind)


@cache
def kernel() -> Callable[..., None]:
    """`_make` compiled: from numba's cache, or here and now, which takes a while and is reported on stderr.

    Processes that compile at once each do so, and any one's result stays. Where nothing can be kept (a read-only
    installation and home, and no NUMBA_CACHE_DIR) every process compiles for itself.
    """
    counter = types.Array(types.int64, 1, "C")
    table = types.Array(from_dtype(RECORD), 2, "C")
    signature = types.void(table, counter, counter, counter, types.boolean, types.int64)
    with event.install_listener("numba:compile", _Announcement()):
        try:
            made = njit(signature, nogil=True, error_model="numpy", cache=True)(_make)
        except (RuntimeError, OSError):  # no place for the cache, or none left in it
            made = njit(signature, nogil=True, error_model="numpy")(_make)
    return made


class _Announcement(event.Listener):
    """Says once that something is compiled: else a start stands still for no reason that can be seen."""

    said = False

    def on_start(self, event: Any) -> None:
        if not self.said:
            print("compiling the crops' kernel, once for this machine: about 15 s", file=sys.stderr, flush=True)
        self.said = True

    def on_end(self, event: Any) -> None: ...
