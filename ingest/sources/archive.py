"""Archives: tar, tar.gz and zip, read where they stand and never extracted."""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from io import FileIO
from itertools import islice
from typing import BinaryIO, NamedTuple, cast

import pyarrow as pa

from ingest.files import expand, is_apple_double, labels, listing, open_file
from ingest.reasons import Reason, said
from ingest.sources import FILE, PROBLEM
from ingest.sources.readers import DAMAGE, OfMembers, Reader, Readers
from seer_pipe.shards import BLOCK

BATCH = 10_000  # rows of a table
SCAN = 64 * BLOCK  # bytes of one read behind the end of a tar
LONGEST_HEADER = 1 << 20  # bytes; a tar with a longer header means harm
MEMBER_KINDS = {
    tarfile.LNKTYPE: "hard link",
    tarfile.SYMTYPE: "symbolic link",
    tarfile.CHRTYPE: "device",
    tarfile.BLKTYPE: "device",
    tarfile.FIFOTYPE: "pipe",
}


class Member(NamedTuple):
    """One member of an archive, or what is wrong with it."""

    name: str
    size: int = 0  # bytes
    place: int = 0  # of its first byte in the (inflated) tar, or its number in the zip
    problem: Reason | None = None
    detail: str | None = None


SCHEMA = pa.schema([("source", pa.string()), ("size", pa.int64()), ("place", pa.int64()), *PROBLEM, FILE])


class ArchiveSource(OfMembers):
    """Every member that is no folder, of the archive, pattern or folder of archives ``where``, in order; but for what
    macOS puts beside files (``._name``).

    Names of members are labels and nothing more. Links, devices and sparse files are rejected; the rest of an
    archive that breaks off or cannot be read is one rejected input.
    """

    def __init__(self, where: str, max_bytes: int) -> None:
        self._files = expand(where, KINDS)
        self._max_bytes = max_bytes
        self._readers = Readers(lambda file: kind(file).reader(kind(file).open(file)))
        self.identity = {"kind": "archive", "files": listing(self._files)}

    def tables(self) -> Iterator[pa.Table]:
        for file, label in zip(self._files, labels(self._files), strict=True):
            rows = ((f"{label}/{member.name}", *member[1:], os.fsencode(file)) for member in members(file))
            while batch := list(islice(rows, BATCH)):
                yield pa.table([*map(list, zip(*batch, strict=True))], schema=SCHEMA)


def members(file: str) -> Iterator[Member]:
    """What is in an archive, in order, up to where it is damaged."""
    try:
        with kind(file).open(file) as data:
            yield from (member for member in kind(file).members(data) if not is_apple_double(member.name))
    except DAMAGE as error:
        yield Member("…", problem=Reason.UNREADABLE, detail=f"damaged from here on: {said(error)}")


def tar_members(data: BinaryIO) -> Iterator[Member]:
    """The members of a tar, and of those that were appended to it behind its end mark (``cat a.tar b.tar``)."""
    start: int | None = 0
    while start is not None:
        data.seek(start)
        yield from one_tar_members(data)
        start = next_tar(data)


def next_tar(data: BinaryIO) -> int | None:
    """Where the next block stands that is not all zero, or None."""
    while block := data.read(SCAN):
        found = len(block) - len(block.lstrip(b"\0"))
        if found < len(block):
            return data.tell() - len(block) + found // BLOCK * BLOCK
    return None


def one_tar_members(data: BinaryIO) -> Iterator[Member]:
    """From where ``data`` stands to behind the first block of the end mark."""
    with tarfile.TarFile(fileobj=cast(BinaryIO, Headers(data)), encoding="utf-8", errors="backslashreplace") as tar:
        while (info := tar.next()) is not None:
            tar.members = []  # type: ignore[attr-defined]  # it would keep them all
            if info.isdir():
                continue
            plain = info.isreg() and not info.issparse()
            yield Member(
                info.name,
                info.size if plain else 0,
                info.offset_data,
                problem=None if plain else Reason.UNSAFE_MEMBER,
                detail=None if plain else MEMBER_KINDS.get(info.type, "sparse or of an unknown kind"),
            )
        # tarfile takes whatever is no header for the end
        data.seek(tar.offset)
        if data.read(BLOCK) != bytes(BLOCK):
            raise ValueError("the end mark is missing")


def zip_members(data: BinaryIO) -> Iterator[Member]:
    with zipfile.ZipFile(data) as archive:
        for place, info in enumerate(archive.infolist()):
            if info.filename.endswith("/"):  # its is_dir fails on an empty name in Python 3.11
                continue
            name = info.filename.encode("utf-8", "backslashreplace").decode()
            if stat.S_IFMT(info.external_attr >> 16) not in (0, stat.S_IFREG):
                yield Member(name, problem=Reason.UNSAFE_MEMBER, detail="link or device")
            elif info.flag_bits & 1:
                yield Member(name, problem=Reason.UNREADABLE, detail="encrypted")
            else:
                yield Member(name, info.file_size, place)


class TarReader:
    """Reads anywhere in a plain tar, and from front to back in a compressed one."""

    def __init__(self, data: BinaryIO) -> None:
        self._data = data

    def read(self, place: int, size: int) -> bytes:
        self._data.seek(place)
        data = self._data.read(size)
        if len(data) < size:
            raise EOFError(f"ends after {len(data)} of {size} bytes")
        return data

    def close(self) -> None:
        self._data.close()


class ZipReader:
    def __init__(self, data: BinaryIO) -> None:
        self._data, self._zip = data, zipfile.ZipFile(data)
        self._infos = self._zip.infolist()

    def read(self, place: int, size: int) -> bytes:
        with self._zip.open(self._infos[place]) as member:
            return member.read()  # at most the size in the directory

    def close(self) -> None:
        self._zip.close()
        self._data.close()


class Kind(NamedTuple):
    open: Callable[[str], BinaryIO]
    members: Callable[[BinaryIO], Iterator[Member]]
    reader: Callable[[BinaryIO], Reader[int]]


def open_inflated(file: str) -> BinaryIO:
    under = open_file(file)
    inflated = gzip.GzipFile(fileobj=under)
    inflated.myfileobj = cast(FileIO, under)  # closed with it
    return cast(BinaryIO, inflated)


TAR, TAR_GZ = Kind(open_file, tar_members, TarReader), Kind(open_inflated, tar_members, TarReader)
KINDS = {".tar": TAR, ".tar.gz": TAR_GZ, ".tgz": TAR_GZ, ".zip": Kind(open_file, zip_members, ZipReader)}


def kind(file: str) -> Kind:
    return next(kind for suffix, kind in KINDS.items() if file.lower().endswith(suffix))


class Headers:
    """A file for ``tarfile`` to read headers from, and nothing that is too long to be one."""

    def __init__(self, data: BinaryIO) -> None:
        self._data = data
        self.seek, self.tell = data.seek, data.tell

    def read(self, size: int = -1) -> bytes:
        if not 0 <= size <= LONGEST_HEADER:
            raise ValueError(f"a header of {size} bytes")
        return self._data.read(size)
