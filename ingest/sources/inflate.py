"""Web archives as streams of bytes, compressed or not, that can be entered at any place.

A gzip member can be read on its own, so a byte's address is its member's place in the file and the number of inflated
bytes before it there: exact however the records are divided into members. Where each record is a member, as the
standard has it, reading one costs its own bytes; where many are in one, they are read from front to back. What is not
compressed, and what is compressed by Zstandard, counts as one member at 0.
"""

from __future__ import annotations

import io
import zlib
from typing import Any, BinaryIO, NamedTuple

import pyarrow as pa

PIECE = 64 << 10  # bytes of one read
GZIP, ZSTD = b"\x1f\x8b", (b"\x28\xb5\x2f\xfd", b"\x5d\x2a\x4d\x18")  # a frame, a dictionary before it


class Address(NamedTuple):
    place: int  # of a member in the file
    skip: int  # inflated bytes of it that come before


class Stream:
    """A file that is not compressed, and what all have in common."""

    def __init__(self, data: BinaryIO) -> None:
        self._data = data
        self._restart(0)

    def _restart(self, place: int) -> None:
        self._place, self._skip = place, 0  # of the first byte of the buffer
        self._buffer, self._at = b"", 0
        self._data.seek(place)

    def _piece(self) -> bytes:
        """What comes next, of one member; empty at the end."""
        return self._data.read(PIECE)

    def _fill(self) -> bool:
        """Whether there is more; if so, it is in the buffer."""
        if self._at == len(self._buffer):
            self._skip += self._at
            self._at = 0
            self._buffer = self._piece()
        return bool(self._buffer)

    def address(self) -> Address:
        """Of the next byte."""
        self._fill()
        return Address(self._place, self._skip + self._at)

    def go(self, address: Address) -> None:
        """Read on from there. EOFError where the stream ends before."""
        if address.place != self._place or address.skip < self._skip + self._at:
            self._restart(address.place)
        self.skip(address.skip - self._skip - self._at)

    def read(self, size: int) -> bytes:
        """The next ``size`` bytes, or fewer at the end."""
        parts = []
        while size and self._fill():
            part = self._buffer[self._at : self._at + size]
            self._at += len(part)
            size -= len(part)
            parts.append(part)
        return b"".join(parts)

    def line(self, most: int) -> bytes:
        """The next line with its end, or its first ``most`` bytes."""
        parts = []
        while most and self._fill():
            start, end = self._at, self._buffer.find(b"\n", self._at, self._at + most) + 1
            self._at = end or min(len(self._buffer), start + most)
            parts.append(self._buffer[start : self._at])
            if end:
                break
            most -= self._at - start
        return b"".join(parts)

    def skip(self, size: int) -> None:
        """Leave out ``size`` bytes. EOFError where there are fewer."""
        left = size - (len(self._buffer) - self._at)
        if left > PIECE and self._seek(left - PIECE):
            size = PIECE
        while size:
            if not self._fill():
                raise EOFError("its last record is not complete")
            step = min(size, len(self._buffer) - self._at)
            self._at += step
            size -= step

    def _seek(self, size: int) -> bool:
        """Leave out the buffer and ``size`` bytes after it, where that is possible without reading them."""
        self._skip += len(self._buffer) + size
        self._buffer, self._at = b"", 0
        self._data.seek(self._skip)
        return True


class Gzipped(Stream):
    """One or more gzip members."""

    def _restart(self, place: int) -> None:
        super()._restart(place)
        self._unzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
        self._input = b""

    def _piece(self) -> bytes:
        piece = b""
        while not piece:
            if self._unzip.eof and not self._next_member():
                return b""
            given = self._input or self._data.read(PIECE)
            piece = self._unzip.decompress(given, PIECE)
            self._input = self._unzip.unconsumed_tail
            if not given and not piece and not self._unzip.eof:
                raise EOFError("its last record is not complete")
        return piece

    def _next_member(self) -> bool:
        """Begin the next member, behind zeros that fill up a block of a tape; False at the end of the file."""
        rest = self._unzip.unused_data or self._data.read(PIECE)
        while rest and not (begun := rest.lstrip(b"\0")):
            rest = self._data.read(PIECE)
        if not rest:
            return False
        self._input = begun
        self._place, self._skip = self._data.tell() - len(begun), 0
        self._unzip = zlib.decompressobj(zlib.MAX_WBITS | 16)
        return True

    def _seek(self, size: int) -> bool:
        return False


class Lent(io.RawIOBase):
    """A file that stays open when its reader closes it, as Arrow's does when it is no longer used."""

    def __init__(self, data: BinaryIO) -> None:
        self._data = data

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        data = self._data.read(len(buffer))
        buffer[: len(data)] = data
        return len(data)


class Zstandard(Stream):
    """Zstandard frames, without a dictionary."""

    def _restart(self, place: int) -> None:
        super()._restart(place)
        self._frames = pa.CompressedInputStream(pa.PythonFile(Lent(self._data), mode="r"), "zstd")

    def _piece(self) -> bytes:
        piece: bytes = self._frames.read(PIECE)
        return piece

    def _seek(self, size: int) -> bool:
        return False


def inflated(data: BinaryIO) -> Stream:
    """``data`` by what it begins with, whatever its name."""
    start = data.read(4)
    if start.startswith(GZIP):
        return Gzipped(data)
    return Zstandard(data) if start in ZSTD else Stream(data)
