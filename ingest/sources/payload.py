"""The body of a stored HTTP response, freed of transfer and content encodings.

Many archives hold the decoded body beneath a head that still names an encoding, and others hold encodings that the
head does not name. So what begins as an image is one, and an encoding is undone where it is there.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Mapping
from typing import NamedTuple

import pyarrow as pa

from ingest.formats import sniff
from ingest.sources.records import parsed, text

STATUS = re.compile(rb"\s*HTTP/\S*\s+(\d{3})")
END = re.compile(rb"\r?\n\r?\n")  # of the head; also of one with bare line feeds
CHUNK = re.compile(rb"\s*([0-9a-fA-F]{1,8})[ \t]*(?:;[^\n]*)?\r?\n")  # its size and extensions
STREAMS = {"br": "brotli", "zstd": "zstd"}  # names of HTTP and of Arrow


class Response(NamedTuple):
    status: int
    head: Mapping[str, str]  # by names in small letters
    body: int  # where it begins


def response(content: bytes) -> Response | None:
    """The head of the HTTP response that ``content`` begins with; None where there is none."""
    status, end = STATUS.match(content), END.search(content)
    if status is None or end is None:
        return None
    lines = text(content[status.end() : end.start()]).splitlines()
    return Response(int(status[1]), parsed(lines[1:]), end.end())


def decoded(body: bytes, head: Mapping[str, str], most: int) -> bytes:
    """``body`` without its encodings, and of what inflates not much more than ``most`` bytes."""
    if sniff(body):
        return body
    body = unchunked(body)
    if sniff(body):
        return body
    for name in reversed(head.get("content-encoding", "").lower().split(",")):
        if name.strip() in STREAMS:
            body = streamed(body, STREAMS[name.strip()], most)
    for bits in (zlib.MAX_WBITS | 32, -zlib.MAX_WBITS):  # gzip or zlib, which say so, or the bare data
        if sniff(plain := inflated(body, bits, most)):
            return plain
    return body


def unchunked(body: bytes) -> bytes:
    """Chunks put together, as far as they are there; what has none as it is."""
    parts, at = [], 0
    while (size := CHUNK.match(body, at)) is not None:
        at = size.end() + int(size[1], 16)
        parts.append(body[size.end() : at])
        if not parts[-1]:  # the last chunk
            break
    return b"".join(parts) if parts else body


def inflated(body: bytes, bits: int, most: int) -> bytes:
    """As far as it can be inflated."""
    unzip, parts, left = zlib.decompressobj(bits), [], most + 1
    try:
        while left > 0 and body:
            parts.append(unzip.decompress(body, min(left, 1 << 16)))
            left -= len(parts[-1])
            body = unzip.unconsumed_tail
    except zlib.error:
        pass
    return b"".join(parts)


def streamed(body: bytes, codec: str, most: int) -> bytes:
    """As far as it can be decompressed; what is not compressed so as it is."""
    try:
        with pa.CompressedInputStream(pa.BufferReader(body), codec) as stream:
            plain: bytes = stream.read(most + 1)
            return plain
    except OSError:
        return body
