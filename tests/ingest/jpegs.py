"""JPEGs that no encoder at hand writes."""

import io
import struct
from itertools import product

import numpy as np
from PIL import Image


class Bits:
    """Entropy-coded data, with a zero stuffed after each 0xFF."""

    def __init__(self) -> None:
        self._text: list[str] = []

    def add(self, value: int, length: int) -> None:
        if length:
            self._text.append(f"{value:0{length}b}")

    def data(self) -> bytes:
        text = "".join(self._text)
        text += "1" * (-len(text) % 8)
        return int(text, 2).to_bytes(len(text) // 8, "big").replace(b"\xff", b"\xff\0")


def segments(jpeg: bytes) -> dict[int, list[bytes]]:
    """The segments before the scan, by marker, each with marker and length."""
    found: dict[int, list[bytes]] = {}
    at = 2
    while jpeg[at + 1] != 0xDA:
        end = at + 2 + int.from_bytes(jpeg[at + 2 : at + 4], "big")
        found.setdefault(jpeg[at + 1], []).append(jpeg[at:end])
        at = end
    return found


def codes(tables: bytes) -> dict[int, dict[int, tuple[int, int]]]:
    """Huffman tables by class and number: the code and its length of each symbol (T.81, annex C)."""
    found, at = {}, 0
    while at < len(tables):
        name, counts = tables[at], tables[at + 1 : at + 17]
        at, code, table = at + 17, 0, {}
        for length, count in enumerate(counts, 1):
            for _ in range(count):
                table[tables[at]] = code, length
                at, code = at + 1, code + 1
            code <<= 1
        found[name] = table
    return found


def sampled(image: Image.Image, factors: tuple[tuple[int, int], ...]) -> bytes:
    """A baseline JPEG with these sampling factors (horizontal, vertical) of Y, Cb and Cr. It has the mean of each
    block alone, coded with the standard tables."""
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=75)
    parts = segments(buffer.getvalue())
    huffman = codes(b"".join(part[4:] for part in parts[0xC4]))
    steps = [part[5] for part in parts[0xDB]]  # of the means, for Y and for the others
    width, height = image.size
    across = -(-width // (8 * max(h for h, _ in factors)))
    down = -(-height // (8 * max(v for _, v in factors)))
    planes = [
        np.asarray(plane.resize((across * h, down * v), Image.Resampling.BOX), int)
        for plane, (h, v) in zip(image.convert("YCbCr").split(), factors, strict=True)
    ]
    bits, last = Bits(), [0, 0, 0]
    for y, x, (which, (h, v)) in product(range(down), range(across), enumerate(factors)):
        table = min(which, 1)
        for row, column in product(range(v), range(h)):
            mean = round((int(planes[which][y * v + row, x * h + column]) - 128) * 8 / steps[table])
            change, last[which] = mean - last[which], mean
            size = abs(change).bit_length()
            bits.add(*huffman[table][size])
            bits.add(change if change > 0 else change + (1 << size) - 1, size)
            bits.add(*huffman[0x10 | table][0])  # the end of the block
    frame = b"".join(bytes([n + 1, h << 4 | v, min(n, 1)]) for n, (h, v) in enumerate(factors))
    return b"".join(
        [
            b"\xff\xd8", *parts[0xDB], b"\xff\xc0", struct.pack(">HBHHB", 17, 8, height, width, 3), frame,
            *parts[0xC4], b"\xff\xda\0\x0c\3\1\0\2\x11\3\x11\0\x3f\0", bits.data(), b"\xff\xd9",
        ]
    )  # fmt: skip
