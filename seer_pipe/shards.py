"""The shard-set format: the contract between ``ingest`` and training.

    ROOT/manifest.parquet         one row per shard: path, samples, bytes, sha256; metadata: format version
    ROOT/00000.tar                USTAR WebDataset tar: KEY.jpg; or of a sample KEY.mp4, KEY.flac, KEY.json
    ROOT/00000.parquet            the sidecar, one row per sample, in the order of the tar
    ROOT/rejected/00000.parquet   a row a rejected input: source, reason, detail
    ROOT/excluded.parquet         where samples are excluded from training: one row each, by number in the set

A unit of work makes one shard. It is done when its sidecar is there: the tar is put first, then the rejected,
then the sidecar, each whole or not at all. The manifest is derived from the sidecars and can be written again.

A sample of one member is that member's payload; one of several is the run of them as it stands in the tar, headers and
all, which `members_of` splits. So a sample is one range of bytes with one checksum, whatever it is.

A set may also index tars that someone else made. Then ``path`` is relative to ROOT or, for a tar that is elsewhere,
absolute or a URL, and the manifest's column ``sidecar`` says where in ROOT the sidecar is.
"""

from __future__ import annotations

import hashlib
import io
import os
import posixpath
import shlex
import tarfile
import tempfile
import uuid
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import google_crc32c
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from seer_pipe.errors import UserError
from seer_pipe.store import Store, create_held, open_in, open_store, split_url

FORMAT_VERSION = 1
VERSION_KEY = b"seer_pipe.format_version"
BLOCK = 512  # bytes of a tar block
MANIFEST = "manifest.parquet"
SIDECAR = "sidecar"  # column of the manifest, where sidecars are not beside their tars
EXCLUDED = "excluded.parquet"
MEDIA_KEY = b"seer_pipe.media"  # in the manifest: what the samples are; images where it does not say
HOLDS = {"image": "images", "video": "video clips", "audio": "audio clips"}
FINGERPRINT_KEY = b"seer_pipe.fingerprint"  # of the set that the numbers in EXCLUDED are of
SMALL = 1000  # samples: a sidecar of no more is fetched whole

MANIFEST_SCHEMA = pa.schema(
    [("path", pa.string()), ("samples", pa.int64()), ("bytes", pa.int64()), ("sha256", pa.string())]
)
#: Columns that every sidecar has; a source adds its own (url, caption, …) after them.
SIDECAR_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),  # path or URL that the image came from
        ("offset", pa.int64()),  # of the sample's first byte in the tar: the image's, or that of a run's first header
        ("length", pa.int64()),  # bytes
        ("crc32c", pa.uint32()),
        ("width", pa.int32()),  # pixels, as stored (upright)
        ("height", pa.int32()),
        ("sha256", pa.string()),  # of the stored bytes, hex; see content_sha256
        ("phash", pa.uint64()),  # perceptual hash; null where not computed
    ]
)
CAPTIONS = ("txt", "caption")  # columns of a source that are the text beside an image, where they are text
REJECTED_SCHEMA = pa.schema([("source", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


def sidecar_path(tar: str) -> str:
    return posixpath.splitext(tar)[0] + ".parquet"


def rejected_path(tar: str) -> str:
    return f"rejected/{PurePosixPath(tar).stem}.parquet"


def is_elsewhere(path: str) -> bool:
    """Whether the ``path`` of a manifest leads out of the set's own store."""
    return path.startswith("/") or "://" in path


@lru_cache(256)
def store_at(url: str) -> Store:
    return open_store(url)


@dataclass(frozen=True)
class Rejected:
    source: str
    reason: str  # from a closed list
    detail: str = ""


_HEADER = tarfile.TarInfo("").tobuf(tarfile.USTAR_FORMAT)
_CHECKSUM = 8 * ord(" ") + sum(_HEADER[:148]) + sum(_HEADER[156:])  # its own place counts as spaces


def ustar_header(name: str, size: int) -> bytes:
    """What ``TarInfo.tobuf`` makes of a plain file of at most 100 ASCII characters and below 8 GiB, at a tenth of its
    cost: name, size and checksum in the header of an empty one."""
    name_, size_ = name.encode("ascii"), b"%011o" % size
    total = _CHECKSUM + sum(name_) + sum(size_) - sum(_HEADER[124:135])
    return b"".join((name_, _HEADER[len(name_) : 124], size_, _HEADER[135:148], b"%06o\0 " % total, _HEADER[156:]))


def _member(name: str, data: bytes) -> bytes:
    return b"".join((ustar_header(name, len(data)), data, bytes(-len(data) % BLOCK)))


def is_run(sample: bytes | memoryview) -> bool:
    """Whether a sample is a run of members of a tar, and not one image alone, which begins with no ASCII character."""
    return bytes(sample[257:263]) == b"ustar\0" and sample[0] < 128


def members_of(run: bytes | memoryview) -> dict[str, bytes]:
    """The members of a sample of several by their extensions. ValueError where it is damaged."""
    found = {}
    try:
        with tarfile.open(fileobj=io.BytesIO(run), mode="r:") as tar:
            for member in tar:
                payload = tar.extractfile(member)
                found[member.name.rpartition("/")[2].partition(".")[2]] = payload.read() if payload else b""
    except tarfile.TarError as error:
        raise ValueError(f"its members cannot be told apart: {error}") from None
    return found


def content_sha256(sample: bytes) -> str:
    """SHA-256, hex, of an image, or of the members of a run one after the other, but for what its JSON says of them:
    equal where two samples are, whatever they are called."""
    if not is_run(sample):
        return hashlib.sha256(sample).hexdigest()
    return hashlib.sha256(b"".join(data for name, data in members_of(sample).items() if name != "json")).hexdigest()


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
        self._note(key, image, self._written + BLOCK, source=source, width=width, height=height, **columns)
        self._write(_member(f"{key}.jpg", image))

    def add_members(
        self, key: str, members: Mapping[str, bytes], *, source: str, width: int, height: int, **columns: Any
    ) -> None:
        """Append a sample of several members, ``key`` with each extension, as a run; its picture is so large."""
        run = b"".join(_member(f"{key}.{extension}", data) for extension, data in members.items())
        self._note(key, run, self._written, source=source, width=width, height=height, **columns)
        self._write(run)

    def _note(self, key: str, sample: bytes, offset: int, **columns: Any) -> None:
        """The row of a sample that is written next."""
        if "." in key or not key.isascii() or len(key) > 90:
            raise ValueError(f"key {key!r}: a key has no dot and at most 90 ASCII characters")
        row = {
            "key": key,
            "offset": offset,
            "length": len(sample),
            "crc32c": google_crc32c.value(sample),
            "sha256": content_sha256(sample),
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

    ``sidecars`` are needed where they are not beside the tars. ``media``: what the samples are: image, video or audio.
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
