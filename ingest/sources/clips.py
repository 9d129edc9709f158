"""The clips of a shard set, whole, for what is made of them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import pyarrow as pa

from ingest.budget import Lease
from ingest.reasons import Reason, UnfetchedError, said
from ingest.sources import Plain, Row
from seer_pipe.errors import UserError
from seer_pipe.shards import ShardSet

COLUMNS = ("source", "key", "offset", "length", "crc32c")


class ClipSource(Plain):
    """The samples of the shard set ``where``, a set of video clips, without those that its list excludes. UserError
    where it holds something else."""

    def __init__(self, where: str) -> None:
        self._set = ShardSet.open(where)
        if self._set.media != "video":
            raise UserError(
                f"{where}: holds {self._set.holds}, and no video clips; seer-ingest … --media video makes some"
            )
        excluded = self._set.excluded
        digest = hashlib.sha256(excluded.tobytes()).hexdigest()
        self.identity = {"kind": "clips", "set": self._set.fingerprint, "excluded": digest}

    def tables(self) -> Iterator[pa.Table]:
        for number, (start, stop) in enumerate(pairwise(self._set.starts)):
            table = self._set.sidecar(number, list(COLUMNS)).select(list(COLUMNS))
            table = table.append_column("shard", pa.array([number] * table.num_rows, pa.int32()))
            table = table.append_column("size", table["length"])
            yield table.filter(pa.array(~np.isin(np.arange(start, stop), self._set.excluded)))

    def shown(self, row: Row) -> str:
        """Where the clip came from, and its key, which is the clip's own."""
        return f"{row['source']}#{row['key']}"

    async def fetch(self, row: Row, lease: Lease) -> bytes:
        await lease.hold(row["length"])
        try:
            return await asyncio.to_thread(self._set.read, row["shard"], row)
        except OSError as error:
            await asyncio.to_thread(self._set.probe, row["shard"])  # of a store that is away it ends the run
            raise UnfetchedError(Reason.UNREADABLE, said(error)) from None
