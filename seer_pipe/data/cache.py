"""A bounded cache on a node's own disk, shared by all processes that name its folder; nothing else coordinates them.

An entry is a file. Whoever reads it holds a shared lock on it, and what is locked is not evicted; the kernel lets go
of a killed process's locks. Room is made under an exclusive lock on one file, which also holds the sum of all sizes.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import uuid
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

TEMPORARY = ".tmp-"
DISK = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EROFS}  # what a disk answers, and no server


class Cached:
    """An entry that is in use: it stays until this object is gone."""

    def __init__(self, file: int) -> None:
        fcntl.flock(file, fcntl.LOCK_SH)
        self._file = file

    def read(self, start: int, length: int) -> bytes:
        return os.pread(self._file, length, start)

    def reserve(self, size: int) -> None:
        os.posix_fallocate(self._file, 0, size)

    def write(self, data: memoryview) -> None:
        at = 0
        while at < len(data):
            at += os.pwrite(self._file, data[at:], at)

    def __del__(self) -> None:
        os.close(self._file)


class Cache:
    """At most ``limit`` bytes in ``folder``. A disk that is full or fails ends its use with one warning."""

    def __init__(self, folder: Path, limit: int) -> None:
        self.folder, self.limit = folder, limit
        self.usable = True
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            self._give_up(error)

    def get(self, name: str, size: int, fetch: Callable[[], bytes]) -> Cached | None:
        """The entry ``name`` of ``size`` bytes, fetched if it is not there; None where there is no room for it.

        What ``fetch`` raises is raised.
        """
        path = self.folder / hashlib.sha256(name.encode()).hexdigest()
        if (found := _open(path, size)) is not None:
            return found
        try:
            if (reserved := self._reserve(size)) is None:
                return None
        except OSError as error:
            self._give_up(error)
            return None
        entry, temporary = reserved
        try:
            data = memoryview(fetch())
            entry.write(data)
            with self._books():  # what counts the files must not see one under two names, or under none
                temporary.rename(path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            if isinstance(error, OSError) and error.errno in DISK:
                self._give_up(error)
                return None
            raise
        return entry

    def _give_up(self, error: OSError) -> None:
        if self.usable:
            self.usable = False
            warnings.warn(f"{self.folder}: {error.strerror or error}; continuing without the cache", stacklevel=2)

    @contextmanager
    def _books(self) -> Iterator[int]:
        file = os.open(self.folder / ".size", os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
            yield file
        finally:
            os.close(file)

    def _reserve(self, size: int) -> tuple[Cached, Path] | None:
        """An empty entry of ``size`` bytes that the disk has set aside, making room first where that is needed."""
        with self._books() as books:
            written = os.pread(books, 8, 0)
            total = int.from_bytes(written, "little") if len(written) == 8 else self.limit
            if total + size > self.limit:
                total = self._evict(self.limit * 9 // 10 - size)
            fits = total + size <= self.limit
            os.pwrite(books, (total + size * fits).to_bytes(8, "little"), 0)
            if not fits:
                return None
            temporary = self.folder / f"{TEMPORARY}{uuid.uuid4().hex}"
            entry = Cached(os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
            try:
                entry.reserve(size)
            except OSError:
                temporary.unlink()
                raise
        return entry, temporary

    def _evict(self, goal: int) -> int:
        """Remove what nobody reads until ``goal`` bytes are left, if that can be; how many are left.

        The last used goes first: a chunk that is finished is wanted again in the next epoch, and those that this
        epoch has not come to yet are wanted sooner. What is counted again here also corrects what killed processes
        left counted.
        """
        entries = []
        for entry in os.scandir(self.folder):
            if entry.name != ".size":
                with suppress(FileNotFoundError):  # whose fetch failed just now
                    status = entry.stat()
                    entries.append((status.st_mtime_ns, status.st_size, entry.path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries, reverse=True):
            leftover = Path(path).name.startswith(TEMPORARY)
            if (total > goal or leftover) and _remove(path):
                total -= size
        return total


def _open(path: Path, size: int) -> Cached | None:
    try:
        file = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    found = Cached(file)
    status = os.fstat(file)
    if status.st_nlink == 0 or status.st_size != size:  # evicted just now, or of another size
        return None
    os.utime(file)
    return found


def _remove(path: str) -> bool:
    """Remove an entry that nobody has locked; whether that was so."""
    try:
        file = os.open(path, os.O_RDONLY)
    except FileNotFoundError:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        Path(path).unlink(missing_ok=True)
        return True
    except BlockingIOError:
        return False
    finally:
        os.close(file)
