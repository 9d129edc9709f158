"""Stores through fsspec: ``gs://``, ``az://``, ``hf://`` and what else it knows, and ``https://`` for reading.

Credentials come from where each library looks for them (and from fsspec's own configuration files), never from a URL:
that would stand in manifests, configs and logs.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from seer_pipe.errors import UserError
from seer_pipe.store.base import EndedError, Entry, RefusedError, demand_no_secrets, patiently

T = TypeVar("T")

#: Protocols of stores where what is put is seen whole or not at all. What else fsspec knows is for reading.
WRITABLE = {"gs", "gcs", "az", "abfs", "abfss", "hf", "memory"}
PATIENCE = 120.0  # seconds that one request may be retried for
PASSING = {408, 429}  # and all from 500: what another try may help


class PassingError(OSError):
    """What another try may help."""


def without_secrets(text: str) -> str:
    """A text with no query in its URLs: libraries sign what they ask for."""
    return re.sub(r"(://[^\s?'\"]*)\?[^\s'\"]*", r"\1?…", text)


class RemoteStore:
    """A store that fsspec reaches. UserError where the URL holds credentials, or a library is missing."""

    def __init__(self, url: str) -> None:
        demand_no_secrets(url)
        self.scheme, self.url = url.partition("://")[0], url.rstrip("/")
        self._process = 0
        self._connect()

    def _connect(self) -> None:
        import fsspec  # not needed for folders

        try:
            # what a listing said is asked for anew: others write here, too
            self._fs, self._root = fsspec.url_to_fs(
                self.url, use_listings_cache=False, skip_instance_cache=True, **self._options()
            )
        except ImportError as error:
            raise UserError(f"{self.url}: {error}") from None
        except ValueError as error:
            raise UserError(f"{self.url}: no store is known for {self.scheme}:// ({error})") from None
        except OSError as error:
            raise UserError(f"{self.url}: no server answers: {without_secrets(str(error))}") from None
        self._root = self._root.rstrip("/")
        self._process = os.getpid()

    def _options(self) -> dict[str, Any]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, Any]) -> None:
        RemoteStore.__init__(self, state["url"])

    @property
    def fs(self) -> Any:
        """The file system, another one in a process that was forked: its connections are its own."""
        if self._process != os.getpid():
            self._connect()
        return self._fs

    def _path(self, path: str) -> str:
        return f"{self._root}/{path}" if path else self._root

    def _ask(self, path: str, request: Callable[[], T]) -> T:
        where = f"{self.url}/{path}" if path else self.url

        def attempt() -> T:
            try:
                return request()
            except Exception as error:
                said = without_secrets(f"{type(error).__name__}: {error}")
                raise self._final(where, error) or PassingError(said) from None

        return patiently(where, attempt, lambda error: None if isinstance(error, PassingError) else error, PATIENCE)

    def _final(self, where: str, error: Exception) -> Exception | None:
        """What an error that cannot pass is raised as; None where it is worth another try."""
        if isinstance(error, FileNotFoundError | IsADirectoryError | NotADirectoryError):
            return FileNotFoundError(where)
        if isinstance(error, UserError | EndedError):
            return error
        if "CERTIFICATE_VERIFY_FAILED" in str(error):
            return UserError(f"{where}: the server's certificate is not trusted; SSL_CERT_FILE names another authority")
        status = status_of(error)
        if status in (404, 410):
            return FileNotFoundError(where)
        if isinstance(error, PermissionError) or (status is not None and 400 <= status < 500 and status not in PASSING):
            said = f"status {status}" if status else without_secrets(str(error).split("\n")[0])
            return RefusedError(f"{where}: refused by the server: {said}; are the credentials where its library looks?")
        if isinstance(error, NotImplementedError | TypeError | AttributeError | ImportError):
            return UserError(f"{where}: {self.scheme}:// cannot do this: {without_secrets(str(error))}")
        return None

    def _demand_writable(self) -> None:
        if self.scheme not in WRITABLE:
            raise UserError(
                f"{self.url}: {self.scheme}:// is for reading here; write to a folder, s3://, gs://, az:// or hf://"
            )

    def get(self, path: str) -> bytes:
        return self._ask(path, lambda: bytes(self.fs.cat_file(self._path(path))))

    def get_range(self, path: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""

        def request() -> bytes:
            data = bytes(self.fs.cat_file(self._path(path), start=start, end=start + length))
            if len(data) != length:
                raise EndedError(f"{self.url}/{path}: {len(data)} bytes at {start} instead of {length}")
            return data

        return self._ask(path, request)

    def put(self, path: str, data: bytes) -> None:
        self._demand_writable()
        self._ask(path, lambda: self.fs.pipe_file(self._path(path), data))

    def put_file(self, path: str, local: Path) -> None:
        self._demand_writable()
        self._ask(path, lambda: self.fs.put_file(str(local), self._path(path)))
        local.unlink()

    def list(self, prefix: str = "") -> Iterator[Entry]:
        folder = prefix.rpartition("/")[0]

        def request() -> dict[str, Any]:
            self.fs.invalidate_cache()
            found: dict[str, Any] = self.fs.find(self._path(folder), detail=True)
            return found

        try:
            found = self._ask(prefix, request)
        except FileNotFoundError:
            return
        strip = len(self._root) + 1
        entries = (Entry(name[strip:], int(about["size"])) for name, about in found.items())
        yield from sorted((entry for entry in entries if entry.path.startswith(prefix)), key=lambda entry: entry.path)

    def size(self, path: str) -> int | None:
        def request() -> int | None:
            self.fs.invalidate_cache()
            about = self.fs.info(self._path(path))
            return int(about["size"]) if about["type"] == "file" else None

        try:
            return self._ask(path, request)
        except FileNotFoundError:
            return None

    def delete(self, path: str) -> None:
        self._demand_writable()
        with contextlib.suppress(FileNotFoundError):
            self._ask(path, lambda: self.fs.rm_file(self._path(path)))

    def local_path(self, path: str) -> None:
        return None


def status_of(error: Exception) -> int | None:
    """The HTTP status that an error of some library tells of; None where it tells none."""
    for holder in (error, getattr(error, "response", None)):
        for name in ("status", "status_code", "code"):
            found = getattr(holder, name, None)
            if isinstance(found, int) or (isinstance(found, str) and found.isdigit()):
                return int(found)
    return None


class HttpStore(RemoteStore):
    """Files of a web server, read by ranges. Nothing is listed there, and nothing written."""

    def _options(self) -> dict[str, Any]:
        import aiohttp
        from fsspec.config import conf

        timeout = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=30)
        return {"client_kwargs": {"timeout": timeout} | conf.get(self.scheme, {}).get("client_kwargs", {})}

    def get(self, path: str) -> bytes:
        return self._ask(path, lambda: self._fetch(path, None)[0])

    def get_range(self, path: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""

        def request() -> bytes:
            data, size = self._fetch(path, (start, length))
            if size < start + length:
                raise EndedError(f"{self.url}/{path}: has {size} bytes, not {length} at {start}")
            if len(data) != length:
                raise OSError(f"{len(data)} bytes at {start} instead of {length}")
            return data

        return self._ask(path, request)

    def size(self, path: str) -> int | None:
        """By a request for the first byte, which also shows whether the server gives ranges."""
        try:
            return self._ask(path, lambda: self._fetch(path, (0, 1))[1])
        except FileNotFoundError:
            return None

    def list(self, prefix: str = "") -> Iterator[Entry]:
        raise UserError(f"{self.url}: a web server lists no files; name them, as in {self.url}/{{00000..00009}}.tar")

    def _fetch(self, path: str, span: tuple[int, int] | None) -> tuple[bytes, int]:
        """The bytes of a file, all of them or those of ``span`` (start, length), and the size of the whole."""
        from fsspec.asyn import sync

        fs = self.fs
        data, size = sync(fs.loop, self._request, fs, path, span)
        return data, size

    async def _request(self, fs: Any, path: str, span: tuple[int, int] | None) -> tuple[bytes, int]:
        headers = dict(fs.kwargs.get("headers", {})) | {"Accept-Encoding": "identity"}
        if span is not None:
            headers["Range"] = f"bytes={span[0]}-{span[0] + span[1] - 1}"
        session = await fs.set_session()
        async with session.get(fs.encode_url(self._path(path)), **{**fs.kwargs, "headers": headers}) as answer:
            whole = answer.headers.get("Content-Range", "").rpartition("/")[2]
            if answer.status == 416 and whole.isdigit():  # behind the end
                return b"", int(whole)
            answer.raise_for_status()
            if span is None:
                data = await answer.read()
                return data, len(data)
            if answer.status != 206 or not whole.isdigit():  # it is not read: it may be a whole shard
                raise UserError(
                    f"{self.url}/{path}: this server does not answer requests for a part of a file (ranges), by which "
                    "shards are read; copy the files to a folder or an object store"
                )
            return await answer.read(), int(whole)
