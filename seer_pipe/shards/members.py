"""Samples in a tar: an image alone, or a run of members."""

from __future__ import annotations

import hashlib
import io
import tarfile
from collections.abc import Mapping

BLOCK = 512  # bytes of a tar block
_HEADER = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
_CHECKSUM = 8 * ord(" ") + sum(_HEADER[:148]) + sum(_HEADER[156:])  # its own place counts as spaces


def ustar_header(name: str, size: int) -> bytes:
    """What ``TarInfo.tobuf`` makes of a plain file of at most 100 ASCII characters and below 8 GiB, at a tenth of its
    cost: name, size and checksum in the header of an empty one."""
    name_, size_ = name.encode("ascii"), b"%011o" % size
    total = _CHECKSUM + sum(name_) + sum(size_) - sum(_HEADER[124:135])
    return b"".join((name_, _HEADER[len(name_) : 124], size_, _HEADER[135:148], b"%06o\0 " % total, _HEADER[156:]))


def member(name: str, data: bytes) -> bytes:
    return b"".join((ustar_header(name, len(data)), data, bytes(-len(data) % BLOCK)))


def is_run(sample: bytes | memoryview) -> bool:
    """Whether a sample is a run of members of a tar, and not one image alone, which begins with no ASCII character."""
    return bytes(sample[257:263]) == b"ustar\0" and sample[0] < 128


def members_of(run: bytes | memoryview) -> dict[str, bytes]:
    """The members of a sample of several by their extensions. ValueError where it is damaged."""
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(run), mode="r:") as tar:
            for member in tar:
                payload = tar.extractfile(member)
                found[member.name.rpartition("/")[2].partition(".")[2]] = payload.read() if payload else b""
    except tarfile.TarError as error:
        raise ValueError(f"its members cannot be told apart: {error}") from None
    return found


def members_sha256(members: Mapping[str, bytes]) -> str:
    """SHA-256, hex, of members by their extensions, one after the other, but for what their JSON says of them."""
    return hashlib.sha256(b"".join(data for name, data in members.items() if name != "json")).hexdigest()


def content_sha256(sample: bytes) -> str:
    """SHA-256, hex, of an image, or of the members of a run: equal where two samples are, whatever they are called."""
    return members_sha256(members_of(sample)) if is_run(sample) else hashlib.sha256(sample).hexdigest()
