"""A store on an S3-compatible server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from seer_pipe.errors import UserError
from seer_pipe.store.base import EndedError, Entry, RefusedError, patiently

T = TypeVar("T")
S3 = "s3://"

#: What S3 servers answer to credentials that are wrong or no longer valid.
CREDENTIALS = {"ExpiredToken", "ExpiredTokenException", "TokenRefreshRequired", "InvalidToken", "InvalidAccessKeyId",
               "SignatureDoesNotMatch", "RequestTimeTooSkewed", "InvalidClientTokenId"}  # fmt: skip
#: What they answer to requests that another try may help.
PASSING = {"SlowDown", "RequestTimeout", "Throttling", "ThrottlingException", "RequestLimitExceeded",
           "OperationAborted", "InternalError"}  # fmt: skip


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
