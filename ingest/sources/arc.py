"""ARC files, WARC's predecessor: their records handed on as WARC records, so that one parser does for both."""

from __future__ import annotations

import io
import re
import zlib
from collections.abc import Iterator
from typing import BinaryIO, Literal

from fastwarc.warc import ArchiveIterator, WarcRecord

#: ``URL IP-address Archive-date Content-type … Archive-length``; the URL may hold spaces
HEADER = re.compile(rb"(?P<url>\S.*) \S+ (?P<date>\d{12,14}) (?P<kind>\S+) (?:.* )?(?P<length>\d+)\s*")
DATE = re.compile(rb"(....)(..)(..)(..)(..)(..)")
LONGEST_HEADER = 64 << 10  # bytes
PIECE = 64 << 10  # bytes of one read


def records(
    data: BinaryIO, place: int, most: int, decode: Literal["all", "none"] = "none"
) -> Iterator[tuple[int, int, WarcRecord]]:
    """From ``place`` on: place and size of each record of a page, and the record with ``most`` bytes of it."""
    data.seek(place)
    zipped = data.read(2) == b"\x1f\x8b"
    while True:
        data.seek(place)
        text, end = (inflate if zipped else copy)(data, most)
        if not text:
            return
        header = HEADER.fullmatch(text.partition(b"\n")[0])
        if header is None:
            raise ValueError("no ARC header")
        if header["url"].startswith(b"http"):
            body = text.partition(b"\n")[2][: int(header["length"])]
            warc = (
                b"WARC/1.0\r\nWARC-Type: response\r\nContent-Type: application/http; msgtype=response\r\n"
                b"WARC-Target-URI: %s\r\nWARC-Date: %s\r\nContent-Length: %d\r\n\r\n%s"
            ) % (header["url"], DATE.sub(rb"\1-\2-\3T\4:\5:\6Z", header["date"].ljust(14, b"0")), len(body), body)
            yield place, int(header["length"]), next(ArchiveIterator(io.BytesIO(warc), auto_decode=decode))
        place = end


def copy(data: BinaryIO, most: int) -> tuple[bytes, int]:
    """The record that begins here, ``most`` bytes of it, and where it ends."""
    header = data.readline(LONGEST_HEADER)
    while header in (b"\n", b"\r\n"):  # between records
        header = data.readline(LONGEST_HEADER)
    length = int(header.split()[-1]) if header.strip() else 0
    end = data.tell() + length
    body = data.read(min(length, most))
    data.seek(max(0, end - 1))
    if length and not data.read(1):
        raise EOFError("its last record is not complete")
    return header + body, end


def inflate(data: BinaryIO, most: int) -> tuple[bytes, int]:
    """As ``copy``, of a record that is a gzip member."""
    unzip, parts, left = zlib.decompressobj(zlib.MAX_WBITS | 16), [], LONGEST_HEADER + most
    chunk = data.read(PIECE)
    if not chunk:
        return b"", data.tell()
    while not unzip.eof:
        part = unzip.decompress(chunk, PIECE)
        parts.append(part[:left])
        left -= len(parts[-1])
        chunk = unzip.unconsumed_tail or (b"" if unzip.eof else data.read(PIECE))
        if not chunk and not unzip.eof and not part:
            raise EOFError("its last record is not complete")
    return b"".join(parts), data.tell() - len(unzip.unused_data)
