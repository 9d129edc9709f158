"""An existing set, used where it stands: its tars stay as they are, only sidecars and a manifest are written."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any, cast

import google_crc32c
import pyarrow as pa

from ingest.files import open_file
from ingest.image import Stored
from ingest.plan import UnitPlan
from ingest.run import Process
from ingest.sources import IMAGE_FIELDS, Row, Source
from ingest.sources.webdataset import WebDatasetSource
from ingest.unit import columns
from seer_pipe.shards import SIDECAR_SCHEMA, Rejected, beside, is_elsewhere, put_rejected, put_sidecar


class IndexSource(WebDatasetSource):
    """The samples of tars, those of one tar in one table, which makes one unit."""

    knows_ours = False  # what this made earlier is no reason to take it for anything but tars

    def __init__(self, where: str, keep: list[str], max_bytes: int) -> None:
        super().__init__(where, keep, max_bytes)
        self.identity = {**self.identity, "kind": "index"}

    def tables(self) -> Iterator[pa.Table]:
        parts: list[pa.Table] = []
        for table in super().tables():
            if parts and parts[0]["file"][0] != table["file"][0]:
                yield pa.concat_tables(parts)
                parts = []
            parts.append(table)
        if parts:
            yield pa.concat_tables(parts)


class IndexSink:
    """The sidecar of one tar, with the samples that can be used as they are."""

    def __init__(self, plan: UnitPlan, source: Source, number: int) -> None:
        self._plan, self._number = plan, number
        self._places: list[int] = []  # of the samples among the inputs
        self._samples: list[dict[str, Any]] = []
        self._rejected: list[Rejected] = []

    def add(self, place: int, row: Row, source: str, image: Stored) -> None:
        self._samples.append(
            {
                "key": row["key"],
                "source": source,
                "offset": row["place"],
                "length": row["size"],
                "crc32c": google_crc32c.value(image.jpeg),
                "sha256": hashlib.sha256(image.jpeg).hexdigest(),
                **columns(image),
            }
        )
        self._places.append(place)

    def reject(self, source: str, reason: str, detail: str = "") -> None:
        self._rejected.append(Rejected(source, reason, detail))

    def __len__(self) -> int:
        return len(self._samples) + len(self._rejected)

    def commit(self) -> None:
        shard = self._plan.shard(self._number)
        with open_file(shard if is_elsewhere(shard) else f"{self._plan.store.url}/{shard}") as tar:
            size = tar.seek(0, 2)
            tar.seek(0)
            digest = hashlib.file_digest(cast(Any, tar), "sha256").hexdigest()
        put_rejected(self._plan.store, self._plan.rejected(self._number), self._rejected)
        rows = pa.Table.from_pylist(self._samples, pa.schema([*SIDECAR_SCHEMA, *IMAGE_FIELDS]))
        sidecar = beside(rows, self._plan.kept(self._number, self._places))
        put_sidecar(self._plan.store, self._plan.sidecar(self._number), sidecar, size, digest)

    def discard(self) -> None:
        """Nothing is there before it is committed."""


def as_they_are(process: Process) -> Process:
    """Judge images as ``process`` does, and take their bytes as they came."""

    async def judge(data: bytes) -> Stored:
        image = await process(data)
        assert isinstance(image, Stored)
        return replace(image, jpeg=data)

    return judge
