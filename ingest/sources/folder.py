"""A folder of images, with all folders in it."""

from __future__ import annotations

import asyncio
import os
import stat
from collections.abc import Iterator
from itertools import islice
from operator import attrgetter
from pathlib import Path

import pyarrow as pa

from ingest.budget import Lease
from ingest.reasons import Reason, UnfetchedError
from ingest.sources import Plain, Row
from seer_pipe.errors import UserError

SCHEMA = pa.schema([("source", pa.string()), ("size", pa.int64()), ("path", pa.binary())])
BATCH = 10_000  # rows of a table
APPLE_DOUBLE = b"._"  # begins the names of what macOS keeps beside files


class FolderSource(Plain):
    """Every plain file below ``root``, folder by folder in the order of the names' bytes, whatever its name; but for
    what macOS puts beside files (``._name``).

    A link to a file counts as the file, a link to a folder is not followed (it may lead in circles). The list is
    fixed by the first run: files that come later have no part in it, files that go are rejected as unreadable.
    """

    def __init__(self, root: Path, max_bytes: int) -> None:
        self.root = root.absolute()
        if not self.root.is_dir():
            raise UserError(f"{root}: {'not a folder' if self.root.exists() else 'no such folder'}")
        self.identity = {"kind": "folder", "path": str(self.root.resolve())}
        self._max_bytes = max_bytes

    def tables(self) -> Iterator[pa.Table]:
        files = walk(os.fsencode(self.root))
        while batch := list(islice(files, BATCH)):
            names, sizes = zip(*batch, strict=True)
            yield pa.table([[shown(name) for name in names], sizes, names], schema=SCHEMA)

    def note(self, inputs: int) -> str:
        now = sum(1 for _ in walk(os.fsencode(self.root)))
        if now == inputs:
            return ""
        return f"{self.root}: {now} files now, {inputs} when this run began; only those are part of it"

    async def fetch(self, row: Row, lease: Lease) -> bytes:
        await lease.hold(min(row["size"], self._max_bytes))
        return await asyncio.to_thread(self._read, os.fsencode(self.root) + b"/" + row["path"])

    def _read(self, path: bytes) -> bytes:
        try:
            # not to hang at a name that has become a pipe since
            with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as file:
                about = os.fstat(file.fileno())
                if not stat.S_ISREG(about.st_mode):
                    raise UnfetchedError(Reason.UNREADABLE, "not a plain file")
                if about.st_size > self._max_bytes:
                    raise UnfetchedError(Reason.TOO_LARGE, f"{about.st_size} bytes; {self._max_bytes} allowed")
                return file.read()
        except OSError as error:
            raise UnfetchedError(Reason.UNREADABLE, error.strerror or str(error)) from None


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
