"""Files with many images in them, kept open while they are read."""

from __future__ import annotations

import asyncio
import os
import tarfile
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from typing import Generic, Protocol, TypeVar

from ingest.reasons import Reason, said
from ingest.sources import UnfetchedError

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
        """The image of ``size`` bytes (at most, where the file does not tell beforehand) at ``place``."""
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
