"""A store in the file system."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from seer_pipe.errors import UserError
from seer_pipe.store.base import Entry

READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}  # what is there cannot be changed


def named(error: BaseException, path: Path) -> BaseException:
    """The error, with the file that was written when it came: a full disk alone does not say which."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = str(path)
    return error


class FolderStore:
    """A store in a folder, which is made when first written to."""

    TEMPORARY = ".tmp-"  # beside the final file, so that the rename stays on one file system

    def __init__(self, root: str | os.PathLike[str]) -> None:
        self.root = Path(root).expanduser().absolute()
        self.url = str(self.root)

    def local_path(self, path: str) -> Path:
        parts = PurePosixPath(path)
        if parts.is_absolute() or ".." in parts.parts:
            raise UserError(f"{path!r}: leaves the store {self.url}")
        return self.root / parts

    def get(self, path: str) -> bytes:
        return self.local_path(path).read_bytes()

    def get_range(self, path: str, start: int, length: int) -> bytes:
        file = os.open(self.local_path(path), os.O_RDONLY)
        try:
            data = os.pread(file, length, start)
        finally:
            os.close(file)
        if len(data) != length:
            raise OSError(f"{self.url}/{path}: {len(data)} bytes at {start} instead of {length}")
        return data

    def put(self, path: str, data: bytes) -> None:
        temporary = self._temporary(path)
        try:
            with create_held(temporary) as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
                self._publish(temporary, path)
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            raise named(error, self.local_path(path)) from None

    def put_file(self, path: str, local: Path) -> None:
        temporary = self._temporary(path)
        try:
            try:
                with local.open("rb+") as file:
                    with contextlib.suppress(OSError):  # who made it may hold it already
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    local.rename(temporary)
                    os.fsync(file.fileno())
                    self._publish(temporary, path)
            except OSError as error:
                if error.errno != errno.EXDEV:
                    raise
                with local.open("rb") as source, create_held(temporary) as file:
                    shutil.copyfileobj(source, file)
                    file.flush()
                    os.fsync(file.fileno())
                    self._publish(temporary, path)
                local.unlink()
        except BaseException as error:
            temporary.unlink(missing_ok=True)
            raise named(error, self.local_path(path)) from None

    def _temporary(self, path: str) -> Path:
        final = self.local_path(path)
        final.parent.mkdir(parents=True, exist_ok=True)
        # not of the process's number, which is 1 in any container
        return final.with_name(f"{self.TEMPORARY}{uuid.uuid4().hex}-{final.name}")

    def _publish(self, temporary: Path, path: str) -> None:
        final = self.local_path(path)
        temporary.replace(final)
        folder = os.open(final.parent, os.O_RDONLY)  # the rename itself must survive a power cut
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def list(self, prefix: str = "") -> Iterator[Entry]:
        top = self.local_path(prefix.rpartition("/")[0])
        found = []
        for folder, _, names in os.walk(top):  # of a missing folder: nothing
            for name in names:
                file = Path(folder, name)
                path = file.relative_to(self.root).as_posix()
                if path.startswith(prefix) and not name.startswith(self.TEMPORARY):
                    with contextlib.suppress(FileNotFoundError):  # deleted since
                        found.append(Entry(path, file.stat().st_size))
        yield from sorted(found, key=lambda entry: entry.path)

    def size(self, path: str) -> int | None:
        try:
            return self.local_path(path).stat().st_size
        except (FileNotFoundError, NotADirectoryError):
            return None

    def delete(self, path: str) -> None:
        file = self.local_path(path)
        file.unlink(missing_ok=True)
        with contextlib.suppress(OSError):  # a folder is there for its files alone, as in an object store
            for folder in file.parents:
                if folder == self.root:
                    break
                folder.rmdir()


def create_held(path: Path) -> BinaryIO:
    """Make a file to write to. While it is open a lock says that it is in use, so that ``holding`` distinguishes it
    from what a killed process left."""
    while True:
        file = path.open("xb", buffering=1 << 20)
        with contextlib.suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)
        if path.exists():  # else it was taken for a leftover before it was locked
            return file
        file.close()


@contextlib.contextmanager
def holding(path: Path) -> Iterator[bool]:
    """Lock a file or folder meanwhile; whether that could be: no process has it in use."""
    file = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:  # of a file system without locks nothing is known
            yield False
        else:
            yield True
    finally:
        os.close(file)
