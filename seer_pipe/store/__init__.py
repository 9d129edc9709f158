"""A place for bytes: a folder, ``s3://bucket/prefix``, or what fsspec reaches (``seer_pipe.store.remote``).

Whatever is put is seen whole or not at all, on both. Paths inside a store are relative and use ``/``. A prefix is a
folder: ``s3://bucket/a`` has nothing of ``ab/``. Keys are taken as they are written, whatever is in them.
S3 credentials, region and endpoint come from boto3's usual places (``AWS_ENDPOINT_URL`` for another server).
"""

from __future__ import annotations

import io
import os
import re
from typing import BinaryIO, cast

from seer_pipe.store.base import EndedError, Entry, RefusedError, Store, demand_no_secrets
from seer_pipe.store.folder import READ_ONLY, FolderStore, create_held, holding
from seer_pipe.store.s3 import S3Store

__all__ = [
    "READ_ONLY", "EndedError", "Entry", "FolderStore", "RefusedError", "S3Store", "Store", "create_held", "holding",
    "is_remote", "open_in", "open_store", "split_url",
]  # fmt: skip
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")


def open_store(url: str | os.PathLike[str]) -> Store:
    """The store at ``url``: ``s3://bucket/prefix``, ``file:///folder``, a folder's path, or a URL for fsspec."""
    text = os.fspath(url)
    scheme, separator, rest = text.partition("://")
    if not separator or not SCHEME.fullmatch(scheme):
        return FolderStore(text)
    if scheme == "s3":
        return S3Store(text)
    if scheme == "file":
        return FolderStore("/" + rest.partition("/")[2])
    from seer_pipe.store.remote import HttpStore, RemoteStore

    return HttpStore(text) if scheme in ("http", "https") else RemoteStore(text)


def is_remote(url: str) -> bool:
    """Whether a URL is of a store that is not in the file system."""
    scheme, separator, _ = url.partition("://")
    return bool(separator and SCHEME.fullmatch(scheme)) and scheme != "file"


def split_url(url: str) -> tuple[str, str]:
    """What to open as a store, and the path in it, of a single object: ``s3://bucket/key`` or the path of a file."""
    if is_remote(url):
        demand_no_secrets(url)
        scheme, _, rest = url.partition("://")
        bucket, _, key = rest.partition("/")
        return f"{scheme}://{bucket}", key
    folder, name = os.path.split(url)
    return folder or ".", name


class _RangedFile(io.RawIOBase):
    """An object of a store as a seekable file that is read by ranges."""

    def __init__(self, store: Store, path: str) -> None:
        size = store.size(path)
        if size is None:
            raise FileNotFoundError(f"{store.url}/{path}")
        self._store, self._path, self._size, self._at = store, path, size, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        self._at = offset + (0, self._at, self._size)[whence]
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        length = max(0, min(len(buffer), self._size - self._at))
        buffer[:length] = self._store.get_range(self._path, self._at, length)
        self._at += length
        return length


def open_in(store: Store, path: str, buffer: int = 8 << 20) -> BinaryIO:
    """An object of a store as a file to read from, by ranges of at least ``buffer`` bytes; FileNotFoundError where
    there is none."""
    local = store.local_path(path)
    if local is not None:
        return local.open("rb")
    return cast(BinaryIO, io.BufferedReader(_RangedFile(store, path), buffer))
