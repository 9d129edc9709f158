"""Whether a shard set is what its manifest and sidecars say, to the last byte."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import google_crc32c

from ingest.files import open_file
from ingest.image import BadImage, ImageSettings, Stored
from ingest.workers import ImagePool
from seer_pipe.shards import SIDECAR_SCHEMA, ShardSet, sidecar_path

READ = 8 << 20  # bytes per request
AHEAD = 32  # images of a shard that may be on their way through the decoders
AS_STORED = ImageSettings(reencode="never", min_side=1, max_aspect=1e9, max_bytes=1 << 32, max_pixels=1 << 28)


@dataclass(frozen=True)
class Problem:
    shard: str  # path or URL of the tar
    key: str  # of the sample; empty where it is about the whole shard
    what: str


@dataclass(frozen=True)
class Check:
    """What was found in one shard."""

    shard: str
    samples: int  # that the sidecar lists
    bytes: int  # that were read
    problems: list[Problem]


def verify(root: str | os.PathLike[str], images: bool = False) -> Iterator[Check]:
    """Read every byte of the set at ``root``; a check a shard, in order, each as soon as it is done.

    Compared are the tar's size and SHA-256 with the manifest, and every member with the sidecar: place, length,
    CRC32C and SHA-256. With ``images`` each image is decoded too, as strictly as when it was ingested. UserError
    where there is no set.
    """
    shards = ShardSet.open(root)
    with ExitStack() as stack:
        decoders = stack.enter_context(ImagePool(AS_STORED)) if images else None
        threads = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        yield from threads.map(lambda shard: _check(shards, shard, decoders), range(len(shards.paths)))


def _check(shards: ShardSet, shard: int, decoders: ImagePool | None) -> Check:
    url, problems = shards.url(shard), list[Problem]()

    def problem(what: str, key: str = "") -> None:
        problems.append(Problem(url, key, what))

    try:
        rows = shards.sidecar(shard, SIDECAR_SCHEMA.names).to_pylist()  # and no column of another making
    except (OSError, ValueError) as error:
        return Check(url, 0, 0, [Problem(url, "", f"the sidecar is not readable: {error}")])
    if len(rows) != shards.counts[shard]:
        problem(f"the sidecar lists {len(rows)} samples, the manifest {shards.counts[shard]}")
    if len({row["key"] for row in rows}) < len(rows):
        problem("a key occurs more than once")
    expected = {row["offset"]: row for row in rows}
    ours = shards.sidecars[shard] == sidecar_path(shards.paths[shard])  # a tar of our making has nothing else in it
    decoding: deque[tuple[dict[str, Any], Future[Stored]]] = deque()

    def decoded() -> None:
        row, future = decoding.popleft()
        try:
            image = future.result()
        except BadImage as error:
            problem(f"does not decode: {error.reason}: {error.detail}", row["key"])
        else:
            if (image.width, image.height) != (row["width"], row["height"]):
                problem(f"is {image.width} x {image.height} pixels, not {row['width']} x {row['height']}", row["key"])

    size, digest = 0, ""
    try:
        with open_file(url) as raw:
            file = _Hashed(raw)
            with tarfile.open(fileobj=cast(BinaryIO, file), mode="r|", bufsize=READ) as tar:
                for member in tar:
                    row = expected.pop(member.offset_data, None)
                    if row is None:
                        if ours:
                            problem(f"{member.name} is not in the sidecar")
                        continue
                    if ours and member.name != f"{row['key']}.jpg":
                        problem(f"the member is called {member.name}", row["key"])
                    payload = tar.extractfile(member)
                    data = payload.read() if payload is not None else b""
                    if len(data) != row["length"]:
                        problem(f"{len(data)} bytes instead of {row['length']}", row["key"])
                    elif google_crc32c.value(data) != row["crc32c"] or _sha256(data) != row["sha256"]:
                        problem("its bytes do not have the checksums of the sidecar", row["key"])
                    if decoders is not None:
                        decoding.append((row, decoders.submit(data)))
                        if len(decoding) > AHEAD:
                            decoded()
            while file.read(READ):  # what follows the end mark belongs to the hash
                pass
            size, digest = file.at, file.sha256.hexdigest()
    except (tarfile.TarError, OSError) as error:
        problem(f"the tar is not readable to its end: {error}")
    while decoding:
        decoded()
    for row in expected.values():
        problem(f"there is no member at byte {row['offset']} of the tar", row["key"])
    if (size, digest) != (shards.bytes[shard], shards.sha256[shard]):
        problem("the tar's size or hash is not that of the manifest")
    return Check(url, len(rows), size, problems)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


class _Hashed:
    """A file that is read once from beginning to end, and hashed on the way."""

    def __init__(self, file: BinaryIO) -> None:
        self.at, self.sha256 = 0, hashlib.sha256()
        self._file = file

    def read(self, size: int) -> bytes:
        data = self._file.read(size)
        self.at += len(data)
        self.sha256.update(data)
        return data
