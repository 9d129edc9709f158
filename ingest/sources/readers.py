"""Files with many images in them, kept open while they are read."""

from __future__ import annotations

import asyncio
import os
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from types import TracebackType
from typing import Any, Generic, Protocol, TypeVar

from ingest.budget import Lease
from ingest.reasons import Reason, UnfetchedError, said
from ingest.sources import InFiles, Row, demand_no_problem

#: What damaged files raise. (A tar with very many headers in a row makes ``tarfile`` recurse.)
DAMAGE = (
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    EOFError,
    OSError,
    ValueError,
    RuntimeError,
)


Place = TypeVar("Place", contravariant=True)  # how a reader's images are found: mostly a number


class Reader(Protocol[Place]):
    """An open file."""

    def read(self, place: Place, size: int) -> bytes:
        """The image of ``size`` bytes (at most, where the file does not say beforehand) at ``place``."""
        ...

    def close(self) -> None: ...


class Readers(Generic[Place]):
    """The ``MOST`` readers used last. One reads at a time: inputs come in the order of the files."""

    MOST = 4

    def __init__(self, open_reader: Callable[[str], Reader[Place]]) -> None:
        self._open_reader = open_reader
        self._readers: OrderedDict[str, Reader[Place]] = OrderedDict()
        self._turn = asyncio.Lock()  # first come, first served, so that a stream is read in its order

    async def read(self, file: bytes, place: Place, size: int) -> bytes:
        """As ``Reader.read``, of a row's ``file``; UnfetchedError where it is damaged or gone."""
        async with self._turn:
            try:
                return await asyncio.to_thread(lambda: self._get(os.fsdecode(file)).read(place, size))
            except DAMAGE as error:
                raise UnfetchedError(Reason.UNREADABLE, said(error)) from None

    def _get(self, file: str) -> Reader[Place]:
        if file not in self._readers:
            if len(self._readers) == self.MOST:
                self._readers.popitem(last=False)[1].close()
            self._readers[file] = self._open_reader(file)
        self._readers.move_to_end(file)
        return self._readers[file]

    def close(self) -> None:
        for reader in self._readers.values():
            reader.close()
        self._readers.clear()


class OfMembers(InFiles):
    """Images that are members of archives, whose sizes the list knows."""

    _readers: Readers[Any]
    _max_bytes: int

    async def fetch(self, row: Row, lease: Lease) -> bytes:
        demand_no_problem(row)
        if row["size"] > self._max_bytes:
            raise UnfetchedError(Reason.TOO_LARGE, f"{row['size']} bytes; {self._max_bytes} allowed")
        await lease.hold(row["size"])
        return await self._readers.read(row["file"], row["place"], row["size"])

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._readers.close()
