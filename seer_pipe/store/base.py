"""What every store has in common."""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from seer_pipe.errors import UserError

T = TypeVar("T")


class RefusedError(UserError, PermissionError):
    """The server does not give this object: the end of a command, and to the stream an object that cannot be read."""


class EndedError(OSError):
    """The object ends before what is asked of it."""


@dataclass(frozen=True)
class Entry:
    path: str
    size: int  # bytes


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


def demand_no_secrets(url: str) -> None:
    """UserError where the URL of a web server holds a query or a password: it would be written down."""
    scheme, _, rest = url.partition("://")
    if scheme in ("http", "https") and re.search("[?#@]", rest):
        raise UserError(
            f"{scheme}://{re.split('[?#]', rest)[0].rpartition('@')[2]}: a URL with a query or a password would stand "
            "in manifests and logs; leave it out (docs/data.md says where credentials are looked for)"
        )
