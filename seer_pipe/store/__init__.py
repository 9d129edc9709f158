"""A place for bytes: a folder, ``s3://bucket/prefix``, or what fsspec reaches (``seer_pipe.store.remote``).

Whatever is put is seen whole or not at all, on both. Paths inside a store are relative and use ``/``. A prefix is a
folder: ``s3://bucket/a`` has nothing of ``ab/``. Keys are taken as they are written, whatever is in them.
S3 credentials, region and endpoint come from boto3's usual places (``AWS_ENDPOINT_URL`` for another server).
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import os
import random
import re
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO, Protocol, TypeVar, cast

from seer_pipe.errors import UserError

T = TypeVar("T")
S3 = "s3://"
SCHEME = re.compile(r"[a-z][a-z0-9+.-]*")

READ_ONLY = {errno.EROFS, errno.EACCES, errno.EPERM}  # what is there cannot be changed

#: What S3 servers answer to credentials that are wrong or no longer valid.
CREDENTIALS = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId",
               "SignatureDoesNotMatch", "RequestTimeTooSkewed", "InvalidClientTokenId"}  # fmt: skip
#: What they answer to requests that another try may help.
PASSING = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded",
           "OperationAborted", "InternalError"}  # fmt: skip


class RefusedError(UserError, PermissionError):
    """The server does not give this object: the end of a command, and to the stream an object that cannot be read."""


class EndedError(OSError):
    """The object ends before what is asked of it."""


@dataclass(frozen=True)
class Entry:
    path: str
    size: int  # bytes


def named(error: BaseException, path: Path) -> BaseException:
    """The error, with the file that was written when it came: a full disk alone does not say which."""
    if isinstance(error, OSError) and error.errno is not None and error.filename is None:
        error.filename = str(path)
    return error


class Store(Protocol):
    """What a place for bytes can do. A missing path raises ``FileNotFoundError``."""

    url: str

    def get(self, path: str) -> bytes: ...
    def get_range(self, path: str, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from ``start``; a shorter answer is an ``OSError``."""
        ...

    def put(self, path: str, data: bytes) -> None:
        """Write all or nothing, durably, over what was there."""
        ...

    def put_file(self, path: str, local: Path) -> None:
        """As ``put``, from a local file, which is gone afterwards."""
        ...

    def list(self, prefix: str = "") -> Iterator[Entry]:
        """Everything whose path starts with ``prefix``, in order of path."""
        ...

    def size(self, path: str) -> int | None:
        """Size in bytes, or None where there is nothing."""
        ...

    def delete(self, path: str) -> None:
        """Remove; nothing happens where there is nothing."""
        ...

    def local_path(self, path: str) -> Path | None:
        """The file itself, where the store is a folder."""
        ...


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


def demand_no_secrets(url: str) -> None:
    """UserError where the URL of a web server holds a query or a password: it would be written down."""
    scheme, _, rest = url.partition("://")
    if scheme in ("http", "https") and re.search("[?#@]", rest):
        raise UserError(
            f"{scheme}://{re.split('[?#]', rest)[0].rpartition('@')[2]}: a URL with a query or a password would stand "
            "in manifests and logs; leave it out (docs/data.md says where credentials are looked for)"
        )


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


def patiently(
    where: str, request: Callable[[], T], final: Callable[[Exception], Exception | None], patience: float
) -> T:
    """Run ``request`` until it succeeds, fails for good, or ``patience`` (seconds) ends; full-jitter back-off.

    ``final``: what an error that cannot pass is to be raised as; None where it is worth another try.
    """
    started, attempt = time.monotonic(), 0
    while True:
        try:
            return request()
        except Exception as error:
            verdict = final(error)
            if verdict is error:
                raise
            if verdict is not None:
                raise verdict from None
            failure = error
        attempt += 1
        wait = random.uniform(0, min(20.0, 0.2 * 2**attempt))
        if time.monotonic() + wait - started > patience:
            raise OSError(f"{where}: gave up after {attempt} tries: {failure}") from failure
        time.sleep(wait)


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


class S3Store:
    """A store on any S3-compatible server, through boto3; one client, safe to share between threads."""

    CONNECTIONS = 64
    PATIENCE = 120.0  # seconds that one request may be retried for

    def __init__(self, url: str) -> None:
        self.bucket, _, prefix = url.removeprefix(S3).partition("/")
        if not self.bucket:
            raise UserError(f"{url}: no bucket; write s3://bucket/prefix")
        self.prefix = prefix.removesuffix("/")
        self.url = f"{S3}{self.bucket}/{self.prefix}" if self.prefix else S3 + self.bucket

    @cached_property
    def client(self) -> Any:
        import boto3  # slow to import and not needed for folders
        from botocore.config import Config
        from botocore.exceptions import BotoCoreError

        config = Config(
            max_pool_connections=self.CONNECTIONS,
            connect_timeout=10,
            read_timeout=30,
            tcp_keepalive=True,
            retries={"mode": "standard", "max_attempts": 2},
            # servers other than AWS answer ranged reads with the whole object's checksum
            request_checksum_calculation="when_required",
            response_checksum_validation="when_required",
        )
        try:
            # a session of its own: the one that all share is not safe to make clients with in several threads
            return boto3.Session().client("s3", config=config)
        except (BotoCoreError, ValueError) as error:  # a profile, region or endpoint that makes no sense
            raise UserError(f"{self.url}: boto3 makes no client of its configuration: {error}") from None

    def _key(self, path: str) -> str:
        return f"{self.prefix}/{path}" if self.prefix else path

    def _retry(self, path: str, request: Callable[[], T]) -> T:
        return patiently(f"{self.url}/{path}", request, lambda error: self._final(path, error), self.PATIENCE)

    def _final(self, path: str, error: Exception) -> Exception | None:
        """What an error that cannot pass is to be raised as; None where it is worth another try."""
        from boto3.exceptions import S3UploadFailedError
        from botocore import exceptions as aws

        if isinstance(error, S3UploadFailedError) and isinstance(error.__context__, Exception):
            error = error.__context__  # what it was, which boto3 puts into words
        if isinstance(error, aws.ClientError):
            return self._refused(path, error.response)
        if isinstance(error, aws.NoCredentialsError | aws.PartialCredentialsError):
            return UserError(f"{self.url}: {error}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY")
        if isinstance(error, aws.SSLError) and "CERTIFICATE_VERIFY_FAILED" in str(error):
            return UserError(f"{self.url}: the server's certificate is not trusted; AWS_CA_BUNDLE names the file of "
                             "another authority")  # fmt: skip
        passing = (aws.HTTPClientError, aws.ConnectionError, aws.IncompleteReadError, aws.ChecksumError,
                   aws.FlexibleChecksumError, aws.CredentialRetrievalError, aws.MetadataRetrievalError)  # fmt: skip
        if isinstance(error, aws.BotoCoreError):  # settings: a profile, a region, a name that no bucket can have
            return None if isinstance(error, passing) else UserError(f"{self.url}: {' '.join(str(error).split())}")
        if isinstance(error, UserError | EndedError | FileNotFoundError | PermissionError | TypeError | AttributeError):
            return error  # ours, of a local file, or a fault of the program
        return None

    def _refused(self, path: str, answer: Any) -> Exception | None:
        """As ``_final``, for what the server answered."""
        code = str(answer.get("Error", {}).get("Code", ""))
        status = answer.get("ResponseMetadata", {}).get("HTTPStatusCode", 0)
        if code in ("NoSuchKey", "404", "NotFound"):
            return FileNotFoundError(f"{self.url}/{path}")
        if code == "NoSuchBucket":
            return UserError(f"{self.url}: there is no bucket {self.bucket}")
        if code in CREDENTIALS:
            return UserError(f"{self.url}: the server does not take the credentials: {code}; renew them "
                             "and start again: what is finished is kept")  # fmt: skip
        if code in PASSING or status in (0, 408, 429) or (status >= 500 and status not in (501, 505)):
            return None
        return RefusedError(f"{self.url}/{path}: refused by the server: {code}")

    def get(self, path: str) -> bytes:
        def request() -> bytes:
            answer = self.client.get_object(Bucket=self.bucket, Key=self._key(path))
            data = answer["Body"].read()
            if len(data) != answer["ContentLength"]:
                raise OSError(f"{len(data)} bytes instead of {answer['ContentLength']}")
            return bytes(data)

        return self._retry(path, request)

    def get_range(self, path: str, start: int, length: int) -> bytes:
        if length == 0:
            return b""

        got: list[bytes] = []  # what has come stays: after a cut, only the rest is asked for

        def request() -> bytes:
            begin = start + sum(map(len, got))
            span = f"bytes={begin}-{start + length - 1}"
            answer = self.client.get_object(Bucket=self.bucket, Key=self._key(path), Range=span)
            size = answer.get("ContentRange", "").rpartition("/")[2]
            if size.isdigit() and int(size) < start + length:
                raise EndedError(f"{self.url}/{path}: has {size} bytes, not {length} at {start}")
            if answer["ContentLength"] != start + length - begin:  # the whole object, perhaps
                raise OSError(f"{answer['ContentLength']} bytes at {begin} instead of {start + length - begin}")
            for block in answer["Body"].iter_chunks(1 << 20):
                got.append(block)
            data = b"".join(got)
            if len(data) != length:
                raise OSError(f"{len(data)} bytes at {start} instead of {length}")
            return data

        return self._retry(path, request)

    def put(self, path: str, data: bytes) -> None:
        self._retry(path, lambda: self.client.put_object(Bucket=self.bucket, Key=self._key(path), Body=data))

    def put_file(self, path: str, local: Path) -> None:
        self._retry(path, lambda: self.client.upload_file(str(local), self.bucket, self._key(path)))
        local.unlink()

    def list(self, prefix: str = "") -> Iterator[Entry]:
        strip = len(self.prefix) + 1 if self.prefix else 0
        token: dict[str, str] = {}

        def request() -> Any:
            return self.client.list_objects_v2(Bucket=self.bucket, Prefix=self._key(prefix), **token)

        while True:
            page = self._retry(prefix, request)
            for item in page.get("Contents", []):
                yield Entry(item["Key"][strip:], item["Size"])
            if not page.get("IsTruncated"):
                return
            token = {"ContinuationToken": page["NextContinuationToken"]}

    def size(self, path: str) -> int | None:
        try:
            head = self._retry(path, lambda: self.client.head_object(Bucket=self.bucket, Key=self._key(path)))
        except FileNotFoundError:
            return None
        return int(head["ContentLength"])

    def delete(self, path: str) -> None:
        self._retry(path, lambda: self.client.delete_object(Bucket=self.bucket, Key=self._key(path)))

    def local_path(self, path: str) -> None:
        return None
