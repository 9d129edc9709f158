"""Writing: a shard, its sidecar and its rejected inputs, and the manifest of a set."""

from __future__ import annotations

import hashlib
import io
import tarfile
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import google_crc32c
import pyarrow as pa
import pyarrow.parquet as pq

from seer_pipe.shards.layout import (
    FORMAT_VERSION,
    MANIFEST,
    MANIFEST_SCHEMA,
    MEDIA_KEY,
    REJECTED_SCHEMA,
    SIDECAR,
    SIDECAR_SCHEMA,
    VERSION_KEY,
    rejected_path,
    sidecar_path,
)
from seer_pipe.shards.members import BLOCK, member, members_sha256
from seer_pipe.store import Store, create_held


@dataclass(frozen=True)
class Rejected:
    source: str
    reason: str  # from a closed list
    detail: str = ""


class ShardWriter:
    """Writes one shard: ``add`` samples, ``reject`` inputs, then ``commit``; or ``discard``.

    The tar grows in a local temporary file and goes to the store at ``commit``. Byte for byte the same samples
    make the same tar (no times, no owners).
    """

    def __init__(self, store: Store, path: str, extra: Sequence[pa.Field] = ()) -> None:
        self.store, self.path = store, path
        self.schema = pa.schema([*SIDECAR_SCHEMA, *extra])
        self._rows: list[dict[str, Any]] = []
        self._rejected: list[Rejected] = []
        local = store.local_path(path)
        if local is not None:
            local.parent.mkdir(parents=True, exist_ok=True)
        # beside the final file where that is a folder, so that committing is a rename
        folder = Path(tempfile.gettempdir()) if local is None else local.parent
        self._file = folder / f".tmp-{uuid.uuid4().hex}.tar"
        self._tar = create_held(self._file)
        self._sha256 = hashlib.sha256()
        self._written = 0

    def __len__(self) -> int:
        """Outcomes so far: samples and rejected inputs."""
        return len(self._rows) + len(self._rejected)

    def _write(self, data: bytes) -> None:
        self._tar.write(data)
        self._sha256.update(data)
        self._written += len(data)

    def add(self, key: str, image: bytes, *, source: str, width: int, height: int, **columns: Any) -> None:
        """Append one image (JPEG bytes) as ``key.jpg``; a ``key`` has no dot and at most 90 ASCII characters."""
        columns |= {"source": source, "width": width, "height": height}
        self._note(key, image, self._written + BLOCK, hashlib.sha256(image).hexdigest(), columns)
        self._write(member(f"{key}.jpg", image))

    def add_members(
        self, key: str, members: Mapping[str, bytes], *, source: str, width: int, height: int, **columns: Any
    ) -> None:
        """Append a sample of several members, ``key`` with each extension, as a run; its picture is so large."""
        run = b"".join(member(f"{key}.{extension}", data) for extension, data in members.items())
        columns |= {"source": source, "width": width, "height": height}
        self._note(key, run, self._written, members_sha256(members), columns)
        self._write(run)

    def _note(self, key: str, sample: bytes, offset: int, sha256: str, columns: dict[str, Any]) -> None:
        """The row of a sample that is written next."""
        if "." in key or not key.isascii() or len(key) > 90:
            raise ValueError(f"key {key!r}: a key has no dot and at most 90 ASCII characters")
        row = {
            "key": key,
            "offset": offset,
            "length": len(sample),
            "crc32c": google_crc32c.value(sample),
            "sha256": sha256,
        }
        self._rows.append(row | columns)

    def reject(self, source: str, reason: str, detail: str = "") -> None:
        self._rejected.append(Rejected(source, reason, detail))

    def commit(self, more: pa.Table | None = None) -> None:
        """Put the tar, the rejected, and last the sidecar, which says that this shard is done.

        ``more``: further columns of the sidecar, one row per sample.
        """
        self._write(bytes(2 * BLOCK))  # end of archive
        self._write(bytes(-self._written % tarfile.RECORDSIZE))
        try:
            self._tar.flush()
            self.store.put_file(self.path, self._file)
            put_rejected(self.store, rejected_path(self.path), self._rejected)
            sidecar = beside(pa.Table.from_pylist(self._rows, self.schema), more)
            put_sidecar(self.store, sidecar_path(self.path), sidecar, self._written, self._sha256.hexdigest())
        finally:
            self.discard()

    def discard(self) -> None:
        with suppress(OSError):  # a full disk: what was not written is not wanted
            self._tar.close()
        self._file.unlink(missing_ok=True)


def beside(table: pa.Table, more: pa.Table | None) -> pa.Table:
    """The columns of ``table``, then those of ``more``, as they are."""
    if more is None:
        return table
    return pa.table([*table.columns, *more.columns], pa.schema([*table.schema, *more.schema]))


def put_rejected(store: Store, path: str, rejected: Sequence[Rejected]) -> None:
    store.put(path, to_parquet(pa.Table.from_pylist([vars(row) for row in rejected], REJECTED_SCHEMA)))


def put_sidecar(store: Store, path: str, rows: pa.Table, shard_bytes: int, shard_sha256: str) -> None:
    """Write the sidecar of a tar of that size and hash; ``rows`` begin with the columns of ``SIDECAR_SCHEMA``."""
    about = {
        VERSION_KEY: str(FORMAT_VERSION).encode(),
        b"seer_pipe.shard_bytes": str(shard_bytes).encode(),
        b"seer_pipe.shard_sha256": shard_sha256.encode(),
    }
    store.put(path, to_parquet(rows.replace_schema_metadata(about)))


def to_parquet(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    return buffer.getvalue()


def write_manifest(
    store: Store, paths: Sequence[str], sidecars: Sequence[str] | None = None, media: str = "image"
) -> int:
    """Write the manifest of the committed shards ``paths`` (tar paths, in order); the number of samples.

    ``sidecars`` are needed where they are not beside the tars. ``media``: what the samples are, a key of
    ``HOLDS``.
    """

    def row(path: str, sidecar: str) -> dict[str, Any]:
        meta = pq.read_metadata(pa.BufferReader(store.get(sidecar)))
        about = meta.metadata
        return {
            "path": path,
            "samples": meta.num_rows,
            "bytes": int(about[b"seer_pipe.shard_bytes"]),
            "sha256": about[b"seer_pipe.shard_sha256"].decode(),
        }

    with ThreadPoolExecutor(16) as pool:
        rows = list(pool.map(row, paths, sidecars or map(sidecar_path, paths)))
    table = pa.Table.from_pylist(rows, MANIFEST_SCHEMA)
    if sidecars is not None:
        table = table.append_column(SIDECAR, pa.array(sidecars, pa.string()))
    about = {VERSION_KEY: str(FORMAT_VERSION).encode()} | ({} if media == "image" else {MEDIA_KEY: media.encode()})
    table = table.replace_schema_metadata(about)
    store.put(MANIFEST, to_parquet(table))
    return sum(r["samples"] for r in rows)
