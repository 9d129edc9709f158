"""Reading: a committed set, its samples, and what is known of them."""

from __future__ import annotations

import hashlib
import io
import os
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from seer_pipe.errors import UserError
from seer_pipe.shards.layout import (
    CAPTIONS,
    EXCLUDED,
    FINGERPRINT_KEY,
    FORMAT_VERSION,
    HOLDS,
    MANIFEST,
    MANIFEST_SCHEMA,
    MEDIA_KEY,
    SIDECAR,
    VERSION_KEY,
    is_elsewhere,
    rejected_path,
    sidecar_path,
)
from seer_pipe.store import Store, open_in, open_store, split_url

SMALL = 1000  # samples: a sidecar of no more is fetched whole


@lru_cache(256)
def store_at(url: str) -> Store:
    return open_store(url)


@dataclass(frozen=True)
class ShardIndex:
    """What training needs of one shard's samples; arrays of equal length, in the order of the tar."""

    offset: npt.NDArray[np.int64]
    length: npt.NDArray[np.int64]
    crc32c: npt.NDArray[np.uint32]
    width: npt.NDArray[np.int32]
    height: npt.NDArray[np.int32]


INDEX_TYPES = {"offset": np.int64, "length": np.int64, "crc32c": np.uint32, "width": np.int32, "height": np.int32}


class ShardSet:
    """A committed shard set, read-only. ``ShardSet.open`` a folder or ``s3://bucket/prefix``."""

    def __init__(self, store: Store, manifest: pa.Table) -> None:
        self.store = store
        self.paths: list[str] = manifest["path"].to_pylist()
        self.counts: npt.NDArray[np.int64] = manifest["samples"].to_numpy()
        self.bytes: npt.NDArray[np.int64] = manifest["bytes"].to_numpy()
        self.sha256: list[str] = manifest["sha256"].to_pylist()
        self.media: str = (manifest.schema.metadata or {}).get(MEDIA_KEY, b"image").decode()  # a key of HOLDS
        beside = SIDECAR not in manifest.column_names
        self.sidecars: list[str] = list(map(sidecar_path, self.paths)) if beside else manifest[SIDECAR].to_pylist()

    @classmethod
    def open(cls, url: str | os.PathLike[str]) -> ShardSet:
        """Load the manifest. UserError where there is none, or one of a newer format."""
        store = open_store(url)
        try:
            data = store.get(MANIFEST)
        except (FileNotFoundError, NotADirectoryError):
            raise UserError(
                f"{store.url}: no shard set here (no {MANIFEST}); make one with seer-ingest, "
                f"or index tars that are there, once: seer-ingest index {shlex.quote(store.url)}"
            ) from None
        except OSError as error:
            raise UserError(f"{store.url}/{MANIFEST}: not readable: {error}") from None
        try:
            manifest = pq.read_table(pa.BufferReader(data))
        except pa.ArrowInvalid as error:
            raise UserError(f"{store.url}/{MANIFEST}: not readable: {error}") from None
        version = int((manifest.schema.metadata or {}).get(VERSION_KEY, b"0"))
        if version > FORMAT_VERSION:
            raise UserError(
                f"{store.url}: shard format {version}; this seer_pipe reads up to {FORMAT_VERSION}: upgrade it"
            )
        missing = set(MANIFEST_SCHEMA.names) - set(manifest.column_names)
        if version < 1 or missing:
            raise UserError(f"{store.url}/{MANIFEST}: not a seer_pipe manifest; lacks {sorted(missing)}")
        return cls(store, manifest)

    @property
    def holds(self) -> str:
        """What its samples are, in words."""
        return HOLDS.get(self.media, self.media)

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.counts.sum())

    @cached_property
    def starts(self) -> npt.NDArray[np.int64]:
        """The number of each shard's first sample within the set, and last the number of samples."""
        return np.concatenate([[0], np.cumsum(self.counts)])

    def shards_of(self, samples: npt.NDArray[np.int64]) -> npt.NDArray[np.intp]:
        """The number of the shard that holds each of ``samples`` (numbers within the set)."""
        return np.searchsorted(self.starts, samples, side="right") - 1

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over the manifest's rows: another order, number or content of shards is another set."""
        digest = hashlib.sha256()
        for path, samples, sha256 in zip(self.paths, self.counts.tolist(), self.sha256, strict=True):
            digest.update(f"{path}\t{samples}\t{sha256}\n".encode())
        return digest.hexdigest()

    @cached_property
    def excluded(self) -> npt.NDArray[np.int64]:
        """Numbers of the samples excluded from training, rising. UserError where the list is of another set."""
        where = f"{self.store.url}/{EXCLUDED}"
        try:
            with self._file(EXCLUDED) as file:
                table = pq.read_table(file, columns=["sample"])
        except FileNotFoundError:
            return np.zeros(0, np.int64)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{where}: not readable: {error}") from None
        if (table.schema.metadata or {}).get(FINGERPRINT_KEY) != self.fingerprint.encode():
            raise UserError(f"{where}: was made when the set was another one; delete it and exclude again")
        numbers: npt.NDArray[np.int64] = table["sample"].to_numpy()
        if len(numbers) and (numbers[0] < 0 or numbers[-1] >= len(self) or (np.diff(numbers) <= 0).any()):
            raise UserError(f"{where}: numbers that are not rising or not of the set; delete it and exclude again")
        return numbers

    def index(self, shard: int) -> ShardIndex:
        """The columns of ``ShardIndex`` of shard number ``shard``, out of its sidecar, and nothing else of it."""
        path, fields = self.sidecars[shard], ShardIndex.__dataclass_fields__
        try:
            with self._file(path, whole=self.counts[shard] <= SMALL) as file:
                table = pq.ParquetFile(file).read(columns=list(fields), use_threads=False)  # quicker than read_table
            if table.num_rows != self.counts[shard]:
                raise OSError("has another number of rows than the manifest says")
            # copies, so that the table can go
            return ShardIndex(**{name: np.array(table[name], INDEX_TYPES[name]) for name in fields})
        except FileNotFoundError:
            raise FileNotFoundError(f"{self.store.url}/{path}: no such sidecar; seer-ingest index makes it") from None
        except (OSError, pa.ArrowException, KeyError, OverflowError) as error:
            raise OSError(f"{self.store.url}/{path}: {error}") from None

    def _file(self, path: str, whole: bool = False) -> Any:
        """A file to read a part of: of an object no more than that is fetched, if not ``whole``."""
        if whole and self.store.local_path(path) is None:
            return io.BytesIO(self.store.get(path))
        return open_in(self.store, path, buffer=1 << 16)

    def sidecar(self, shard: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Sidecar of shard number ``shard``, whole or some columns."""
        path = self.sidecars[shard]
        local = self.store.local_path(path)
        source = local if local is not None else pa.BufferReader(self.store.get(path))
        return pq.read_table(source, columns=columns)

    def rejected(self, shard: int) -> pa.Table | None:
        """What was rejected when shard number ``shard`` was made (``REJECTED_SCHEMA``); None where it is not known."""
        try:
            return pq.read_table(pa.BufferReader(self.store.get(rejected_path(self.sidecars[shard]))))
        except FileNotFoundError:
            return None

    def captions(self, shard: int) -> list[str | None]:
        """The text beside each image of shard number ``shard``; empty where its source kept none."""
        path = self.sidecars[shard]
        with self._file(path) as file:
            table = pq.ParquetFile(file)
            schema = table.schema_arrow
            for name in CAPTIONS:
                if name in schema.names and (
                    pa.types.is_string(schema.field(name).type) or pa.types.is_large_string(schema.field(name).type)
                ):
                    found: list[str | None] = table.read(columns=[name], use_threads=False)[name].to_pylist()
                    return found
        return []

    def url(self, shard: int) -> str:
        """Where the tar of shard number ``shard`` is: a path, or a URL."""
        path = self.paths[shard]
        return path if is_elsewhere(path) else f"{self.store.url}/{path}"

    def probe(self, shard: int) -> None:
        """Ask for a sign of life of the store that holds shard number ``shard``; an ``OSError`` where none comes."""
        if not is_elsewhere(self.paths[shard]):
            self.store.size(MANIFEST)

    def is_local(self) -> bool:
        """Whether all tars are in folders."""
        return self.store.local_path("") is not None and not any("://" in path for path in self.paths)

    def get_range(self, shard: int, start: int, length: int) -> bytes:
        """Exactly ``length`` bytes from byte ``start`` of the tar of shard number ``shard``."""
        path = self.paths[shard]
        if not is_elsewhere(path):
            return self.store.get_range(path, start, length)
        root, name = split_url(path)
        return store_at(root).get_range(name, start, length)

    def read(self, shard: int, row: Mapping[str, Any]) -> bytes:
        """The bytes of one sample, given its sidecar row; an ``OSError`` when the checksum fails."""
        data = self.get_range(shard, int(row["offset"]), int(row["length"]))
        if google_crc32c.value(data) != row["crc32c"]:
            raise OSError(f"{self.url(shard)}: {row.get('key', '')}: checksum mismatch")
        return data
