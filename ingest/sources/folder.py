"""A folder of images, with all folders in it."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator, Sequence
from itertools import islice
from operator import attrgetter
from pathlib import Path

import pyarrow as pa

from ingest.budget import Lease
from ingest.reasons import Reason, UnfetchedError
from ingest.sources import Plain, Row, kept_fields, listed
from ingest.sources.beside import LONGEST_TEXT, beside
from seer_pipe.errors import UserError

SCHEMA = pa.schema([("source", pa.string()), ("size", pa.int64()), ("path", pa.binary())])
BATCH = 10_000  # rows of a table
APPLE_DOUBLE = b"._"  # begins the names of what macOS keeps beside files


class FolderSource(Plain):
    """Every plain file below ``root``, folder by folder in the order of the names' bytes, whatever its name; but for
    what macOS puts beside files (``._name``).

    A link to a file counts as the file, a link to a folder is not followed (it may lead in circles). The list is
    fixed by the first run: files that come later have no part in it, files that go are rejected as unreadable.

    ``keep`` names what the sidecar keeps of what lies beside ``a.jpg``: keys of ``a.json``, or the text of ``a.txt``
    under ``txt`` and so on. Files with the extension json or one of these names are then no inputs.
    """

    def __init__(self, root: Path, max_bytes: int, keep: Sequence[str] = (), media: str = "image") -> None:
        self.root = root.absolute()
        if not self.root.is_dir():
            raise UserError(f"{root}: {'not a folder' if self.root.exists() else 'no such folder'}")
        self.identity = {"kind": "folder", "path": str(self.root.resolve())}
        if keep:
            self.identity |= {"keep_columns": list(keep)}
        self.kept = kept_fields((pa.field(name, pa.string()) for name in keep), media)
        self._keep, self._max_bytes = list(keep), max_bytes
        self._texts = {b"json", *(name.lower().encode() for name in keep)} if keep else set()
        self._schema = pa.schema([*SCHEMA, *listed(self.kept)])

    def tables(self) -> Iterator[pa.Table]:
        files = self._files()
        while batch := list(islice(files, BATCH)):
            names, sizes = zip(*batch, strict=True)
            said = zip(*(self._beside(name) for name in names), strict=True) if self._keep else ()
            yield pa.table([[shown(name) for name in names], sizes, names, *map(list, said)], schema=self._schema)

    def _files(self) -> Iterator[tuple[bytes, int]]:
        for name, size in walk(os.fsencode(self.root)):
            if split(name)[1] not in self._texts:
                yield name, size

    def _beside(self, name: bytes) -> list[str | None]:
        stem = os.fsencode(self.root) + b"/" + split(name)[0]

        def text(extension: str) -> str:
            try:
                return _read(stem + b"." + extension.encode(), LONGEST_TEXT).decode("utf-8", "backslashreplace")
            except UnfetchedError:
                return ""

        return beside(text, self._keep)

    def note(self, inputs: int) -> str:
        now = sum(1 for _ in self._files())
        if now == inputs:
            return ""
        return f"{self.root}: {now} files now, {inputs} when this run began; only those are part of it"

    async def fetch(self, row: Row, lease: Lease) -> bytes:
        await lease.hold(min(row["size"], self._max_bytes))
        return await asyncio.to_thread(_read, os.fsencode(self.root) + b"/" + row["path"], self._max_bytes)


def _read(path: bytes, max_bytes: int) -> bytes:
    """A plain file; UnfetchedError where it is none, is larger, or cannot be read."""
    try:
        # not to hang at a name that has become a pipe since
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
            about = os.fstat(file.fileno())
            if not stat.S_ISREG(about.st_mode):
                raise UnfetchedError(Reason.UNREADABLE, "not a plain file")
            if about.st_size > max_bytes:
                raise UnfetchedError(Reason.TOO_LARGE, f"{about.st_size} bytes; {max_bytes} allowed")
            return file.read()
    except OSError as error:
        raise UnfetchedError(Reason.UNREADABLE, error.strerror or str(error)) from None


def split(name: bytes) -> tuple[bytes, bytes]:
    """A path without its last extension, and that in lower case."""
    folder, slash, last = name.rpartition(b"/")
    stem, _, extension = last.rpartition(b".")
    return (folder + slash + stem, extension.lower()) if stem else (name, b"")


def shown(name: bytes) -> str:
    """A file's name as text; bytes that are not UTF-8 as ``\\xff``."""
    return name.decode("utf-8", "backslashreplace")


def walk(root: bytes) -> Iterator[tuple[bytes, int]]:
    """Path relative to ``root`` and size in bytes of every plain file, in order.

    What cannot be looked at (a folder without permission, a link to nothing) is given as well, with size 0.
    """
    start = len(root) + 1
    stack: list[os.DirEntry[bytes] | None] = [None]  # None: the root itself
    while stack:
        entry = stack.pop()
        path = root if entry is None else entry.path
        try:
            if entry is None or entry.is_dir(follow_symlinks=False):
                with os.scandir(path) as entries:
                    names = (entry for entry in entries if not entry.name.startswith(APPLE_DOUBLE))
                    stack.extend(sorted(names, key=attrgetter("name"), reverse=True))
                continue
            about = entry.stat()
            if stat.S_ISREG(about.st_mode):
                yield path[start:], about.st_size
        except OSError:
            yield path[start:], 0
