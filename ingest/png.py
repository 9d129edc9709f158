"""The chunks of a PNG file: the file without its metadata, and what of that matters."""

from __future__ import annotations

import struct
import zlib
from dataclasses import dataclass

SIGNATURE = b"\x89PNG\r\n\x1a\n"
FRAME = 12  # bytes of a chunk besides its data: length, kind, CRC
LARGEST_ICC = 16 << 20  # bytes


@dataclass(frozen=True)
class Png:
    data: bytes  # the same image without metadata
    exif: bytes | None
    icc: bytes | None


def parse_png(data: bytes) -> Png:
    """Leave out every chunk that the picture does not need, sound or not, and what follows the end. Never raises.

    Kept are the critical chunks and the transparency. As libpng does, a chunk that is not critical is passed over
    where its CRC is wrong; an animation is left with its default image.
    """
    kept, at = [SIGNATURE], len(SIGNATURE)
    exif: bytes | None = None
    icc: bytes | None = None
    kind = b""
    while at + FRAME <= len(data) and kind != b"IEND":
        length, kind = struct.unpack_from(">I4s", data, at)
        end = at + FRAME + length
        if end > len(data):
            break
        if kind[:1].isupper():
            kept.append(data[at:end])
        elif zlib.crc32(data[at + 4 : end - 4]) == int.from_bytes(data[end - 4 : end], "big"):
            body = data[at + 8 : end - 4]
            if kind == b"tRNS":
                kept.append(data[at:end])
            elif kind == b"eXIf":
                exif = body
            elif kind == b"iCCP":
                icc = inflated(body.partition(b"\0")[2][1:])  # after its name and the method, of which there is one
        at = end
    if kind != b"IEND":
        kept.append(data[at:])  # the decoder is to see how it breaks off
    return Png(b"".join(kept), exif, icc)


def inflated(data: bytes) -> bytes | None:
    unzip = zlib.decompressobj()
    try:
        profile = unzip.decompress(data, LARGEST_ICC)
    except zlib.error:
        return None
    return profile if unzip.eof else None
