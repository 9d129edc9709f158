"""HTTP answers as curl and browsers read them, where the client would refuse an answer for its form."""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable
from functools import partial
from typing import Any

import aiohttp
from aiohttp.client_proto import ResponseHandler

from ingest.formats import sniff
from ingest.hosts import AttemptError
from ingest.reasons import Reason

LONGEST_HEAD = 256 << 10  # bytes; browsers stop there too
END = re.compile(rb"\r?\n\r?\n")
START = 16  # bytes of a body that show whether it is encoded
ZIPPED = ("gzip", "x-gzip", "deflate")
FOREIGN = ("br", "zstd", "compress", "x-compress", "dcb", "dcz")  # real codings, which no request asked for
Decode = Callable[[bytes, int], bytes]


class LenientConnector(aiohttp.TCPConnector):
    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._factory = partial(LenientHandler, loop=self._loop)  # type: ignore[assignment]


class LenientHandler(ResponseHandler):
    """Gives heads to the parser in a form that it takes."""

    _head: bytes | None = None  # what has come of a head that is waited for

    def set_response_params(self, **settings: Any) -> None:
        self._head = b""
        super().set_response_params(**settings)

    def data_received(self, data: bytes) -> None:
        if self._head is None:
            super().data_received(data)
            return
        seen, data = max(0, len(self._head) - 3), self._head + data
        end = END.search(data, seen)
        if end is None and len(data) < LONGEST_HEAD and data[:5] == b"HTTP/"[: len(data)]:
            self._head = data
            return
        self._head = None
        if end is None:
            super().data_received(data)
        elif data.startswith(b"HTTP/1.1 1"):  # an interim answer; the head comes after it
            super().data_received(data[: end.end()])
            self._head = b""
            self.data_received(data[end.end() :])
        else:
            super().data_received(repaired(data[: end.start()]) + data[end.end() :])


def repaired(head: bytes) -> bytes:
    """A head with names that end at the colon, no line without one, and no length that is said twice or where the
    body comes in chunks. Lengths that contradict each other stay, to be refused."""
    status, *lines = head.replace(b"\r\n", b"\n").split(b"\n")
    fields: list[tuple[bytes, bytes]] = []
    for line in lines:
        name, colon, value = line.partition(b":")
        if line[:1] in (b" ", b"\t") and fields:  # continues the line before
            fields[-1] = fields[-1][0], fields[-1][1] + b" " + line.strip()
        elif colon and name.strip():
            fields.append((name.strip(), value.strip()))
    chunked = any(name.lower() == b"transfer-encoding" and b"chunked" in value.lower() for name, value in fields)
    kept, lengths = [status], set[bytes]()
    for name, value in fields:
        if name.lower() == b"content-length":
            lengths.update(part.strip() for part in value.split(b","))
        else:
            kept.append(name + b": " + value)
    if not chunked:
        kept += [b"Content-Length: " + length for length in sorted(lengths)]
    return b"\r\n".join(kept) + b"\r\n\r\n"


def decoder(encoding: str) -> Decode:
    """Undoes a content encoding piece by piece: ``decode(chunk, most)`` gives at most some more than ``most`` bytes.

    What names no coding (none, utf-8, aws-chunked) means nothing, and a body that begins as an image does was never
    encoded, whatever the header says.
    """
    names = [name.strip().lower() for name in encoding.split(",")]
    steps = [unpacker(name) for name in reversed(names) if name in ZIPPED or name in FOREIGN]

    def decode(chunk: bytes, most: int) -> bytes:
        for step in steps:
            chunk = step(chunk, most)
        return chunk

    return decode


def unpacker(name: str) -> Decode:
    start = b""
    chosen: Decode | None = None

    def unpack(chunk: bytes, most: int) -> bytes:
        nonlocal start, chosen
        if chosen is None:
            start += chunk
            if len(start) < START:
                return b""
            chunk, chosen = start, coding(name, start)
        return chosen(chunk, most)

    return unpack


def coding(name: str, start: bytes) -> Decode:
    """What undoes the coding ``name`` of a body that begins with ``start``."""
    if name in ZIPPED and start.startswith(b"\x1f\x8b"):
        return zlib.decompressobj(16 + zlib.MAX_WBITS).decompress
    if sniff(start) is None:
        if name in FOREIGN:
            raise AttemptError(Reason.BAD_RESPONSE, f"content encoding {name} was not asked for")
        if name == "deflate":  # with the header of zlib, or, as some servers send it, without
            header = start[0] & 15 == 8 and int.from_bytes(start[:2]) % 31 == 0
            return zlib.decompressobj(zlib.MAX_WBITS if header else -zlib.MAX_WBITS).decompress
    return lambda chunk, most: chunk
