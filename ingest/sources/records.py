"""The records of WARC and ARC files: where each begins, what it says of itself, and its content."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import NamedTuple

from ingest.sources.inflate import Address, Stream

LONGEST_HEADER = 64 << 10  # bytes
BLANK = (b"\n", b"\r\n")
#: ``URL IP-address Archive-date Content-type … Archive-length``; the URL may hold spaces
ARC = re.compile(rb"(?P<url>\S.*) \S+ (?P<date>\d{12,14}) (?P<kind>\S+) (?:.* )?(?P<length>\d+)\s*")
DATE = re.compile(r"(....)(..)(..)(..)(..)(..)")


class Record(NamedTuple):
    """A record, of which the stream stands at the content."""

    address: Address
    kind: str  # response, resource, revisit, conversion, request, …
    url: str
    date: str | None  # ISO 8601
    length: int  # bytes of the content
    says: Mapping[str, str]  # fields of its header, by names in small letters


def next_record(stream: Stream) -> Record | None:
    """The record that begins where ``stream`` stands, or None at the end. ValueError where there is none, or one of
    a length that is no number."""
    while True:
        address = stream.address()
        line = stream.line(LONGEST_HEADER)
        if line not in BLANK:
            break
    if not line:
        return None
    if line.startswith(b"WARC/"):
        says = fields(stream)
        return Record(
            address,
            says.get("warc-type", "").lower(),
            says.get("warc-target-uri", "").strip("<>"),
            says.get("warc-date"),
            size(says.get("content-length", "")),
            says,
        )
    if (header := ARC.fullmatch(line)) is None:
        raise ValueError("no record begins here")
    url = text(header["url"])
    kind = "response" if url.startswith(("http://", "https://")) else "other"
    date = DATE.sub(r"\1-\2-\3T\4:\5:\6Z", text(header["date"]).ljust(14, "0"))
    return Record(address, kind, url, date, int(header["length"]), {"content-type": text(header["kind"])})


def size(value: str) -> int:
    if not value.isdecimal():
        raise ValueError(f"a record of {value[:20] or 'no'} length")
    return int(value)


def fields(stream: Stream) -> dict[str, str]:
    """The fields of a header up to the empty line that ends it."""
    lines: list[str] = []
    left = LONGEST_HEADER
    while (line := stream.line(left)) not in BLANK:
        left -= len(line)
        if not line.endswith(b"\n"):
            raise ValueError("a header without an end")
        lines.append(text(line))
    return parsed(lines)


def parsed(lines: list[str]) -> dict[str, str]:
    """Fields by names in small letters; what is there more than once is joined by commas, as of HTTP."""
    found: dict[str, str] = {}
    name = ""
    for line in lines:
        if line[:1] in (" ", "\t") and name:  # continues the line before
            found[name] += " " + line.strip()
            continue
        name, colon, value = line.partition(":")
        name = name.strip().lower()
        if colon:
            found[name] = f"{found[name]}, {value.strip()}" if name in found else value.strip()
        else:
            name = ""
    return found


def text(value: bytes) -> str:
    return value.decode("utf-8", "backslashreplace")
