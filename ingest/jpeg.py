"""The segments of a JPEG file: what they say, and the file without its metadata."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

SOI, EOI = b"\xff\xd8", b"\xff\xd9"
SOF = {0xC0 + n for n in range(16)} - {0xC4, 0xC8, 0xCC}  # frame headers; the others are DHT, JPG and DAC
BASELINE, PROGRESSIVE = 0xC0, 0xC2
SEQUENTIAL = {BASELINE, 0xC1, 0xC9}  # frames whose scans hold all frequencies and all bits
WHOLE = b"\0\x3f\0"  # how such a scan says so
SOS, END = 0xDA, 0xD9
APPLICATION, COMMENT = range(0xE0, 0xF0), 0xFE
NEXT_MARKER = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")  # a marker that is neither stuffing nor a restart
JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"  # version 1.1, square pixels, no thumbnail
EXTRANEOUS = re.compile(r"(\d+) extraneous bytes before marker 0xd9")  # libjpeg's words for bytes it has no use for
MOST_SCANS = 500  # a small file of very many scans keeps a decoder busy for minutes


@dataclass(frozen=True)
class Jpeg:
    data: bytes  # the same image without metadata
    frame: int  # marker of the frame header: which kind of JPEG this is
    precision: int  # bits
    width: int  # pixels, before orientation
    height: int
    exif: bytes | None
    icc: bytes | None
    ended: bool  # whether the end marker was there; ``data`` has one in any case
    tidy: bool  # whether it was, and nothing stood between the segments; DALI takes no other


class NotAJpeg(ValueError):  # noqa: N818 - it says what the data is
    def __init__(self, message: str, truncated: bool = False) -> None:
        super().__init__(message)
        self.truncated = truncated


def parse_jpeg(data: bytes) -> Jpeg:
    """Walk the segments of ``data``, and leave out application data, comments and what follows the end.

    Of application data two things stay, as a decoder takes the colours from them: the JFIF header without its
    thumbnail, and Adobe's colour transform. Raises NotAJpeg.
    """
    kept = [SOI]
    frame = precision = width = height = scans = 0
    exif: bytes | None = None
    icc: dict[int, bytes] = {}
    at, ended, tidy = len(SOI), False, True
    while at < len(data) and not ended:
        start = at
        if data[at] != 0xFF:
            raise NotAJpeg(f"no marker at byte {at}")
        while at < len(data) and data[at] == 0xFF:
            at += 1
        if len(data) < at + 3 and data[at : at + 1] != EOI[1:]:
            break
        marker = data[at]
        if marker == END:
            ended = True
            break
        length = int.from_bytes(data[at + 1 : at + 3], "big")
        end = at + 1 + length
        if length < 2 or end > len(data):
            raise NotAJpeg(f"segment of {length} bytes at byte {start}", truncated=end > len(data))
        body = data[at + 3 : end]
        if marker in APPLICATION:
            if marker == 0xE0 and body.startswith(b"JFIF\0"):
                kept.append(JFIF)
            elif marker == 0xE1 and body.startswith(b"Exif\0\0"):
                exif = exif or body
            elif marker == 0xE2 and body.startswith(b"ICC_PROFILE\0") and len(body) > 14:
                icc[body[12]] = body[14:]  # profiles over 64 KiB come in numbered parts
            elif marker == 0xEE and body.startswith(b"Adobe") and len(body) >= 12:
                kept.append(b"\xff\xee\0\x0e" + body[:12])
        if marker in APPLICATION or marker == COMMENT:
            # on the web some are longer than they say; nothing of the image is in between
            following = NEXT_MARKER.search(data, end)
            tidy = tidy and following is not None and following.start() == end
            end = following.start() if following else len(data)
        else:
            if marker in SOF and not frame:
                if len(body) < 6:
                    raise NotAJpeg("a frame header too short")
                frame, precision = marker, body[0]
                height, width = int.from_bytes(body[1:3], "big"), int.from_bytes(body[3:5], "big")
            elif marker == SOS:
                scans += 1
                if scans > MOST_SCANS:
                    raise NotAJpeg(f"more than {MOST_SCANS} scans")
                following = NEXT_MARKER.search(data, end)
                stop = following.start() if following else len(data)
                if frame in SEQUENTIAL and data[end - 3 : end] != WHOLE:  # there a decoder takes nothing else
                    kept.append(data[start : end - 3] + WHOLE)
                    start, tidy = end, False
                end = stop
            kept.append(data[start:end])
        at = end
    if not frame or not scans:
        raise NotAJpeg("no image in it", truncated=not ended)
    kept.append(EOI)
    profile = b"".join(part for _, part in sorted(icc.items())) or None
    return Jpeg(b"".join(kept), frame, precision, width, height, exif, profile, ended, ended and tidy)


def without_padding(jpeg: Jpeg, complaint: str) -> Jpeg | None:
    """The same without the padding before its end of which a strict decoder complains; None where it is of another
    thing. Padding is one value over and over; other bytes left over mean that the decoder lost its way."""
    found = EXTRANEOUS.search(complaint)
    if found is None:
        return None
    end = len(jpeg.data) - len(EOI)
    start = end - int(found[1])
    if len(set(jpeg.data[start:end])) != 1:
        return None
    return replace(jpeg, data=jpeg.data[:start] + EOI)
