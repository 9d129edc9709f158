"""Whether a shard set is what its manifest and sidecars say, to the last byte."""

from __future__ import annotations

import hashlib
import os
import tarfile
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import google_crc32c

from ingest import tracks
from ingest.files import open_file
from ingest.image import BadImage, ImageSettings, Stored
from ingest.media import Clip, Clips, MediaSettings, demand_av, examine
from ingest.sources import CLIP_FIELDS, CLIPS
from ingest.workers import DecoderPool, Made
from seer_pipe.shards import SIDECAR_SCHEMA, ShardSet, content_sha256, sidecar_path

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
    CRC32C and SHA-256. With ``images`` each image or clip is decoded too, as strictly as when it was ingested.
    UserError where there is no set.
    """
    shards = ShardSet.open(root)
    with ExitStack() as stack:
        decoders = stack.enter_context(_decoders(shards)) if images else None
        threads = stack.enter_context(ThreadPoolExecutor(os.cpu_count()))
        yield from threads.map(lambda shard: _check(shards, shard, decoders), range(len(shards.paths)))


def _decoders(shards: ShardSet) -> DecoderPool:
    if shards.media == "image":
        return DecoderPool(AS_STORED)
    if shards.media == "pair":
        return DecoderPool(AS_STORED, processor=tracks.examine)
    demand_av()
    return DecoderPool(MediaSettings(), processor=examine)


def _check(shards: ShardSet, shard: int, decoders: DecoderPool | None) -> Check:
    url, problems = shards.url(shard), list[Problem]()

    def problem(what: str, key: str = "") -> None:
        problems.append(Problem(url, key, what))

    try:
        clips = [field.name for field in CLIP_FIELDS] if shards.media in CLIPS else []
        rows = shards.sidecar(shard, [*SIDECAR_SCHEMA.names, *clips]).to_pylist()  # and no column of another making
    except (OSError, ValueError) as error:
        return Check(url, 0, 0, [Problem(url, "", f"the sidecar is not readable: {error}")])
    if len(rows) != shards.counts[shard]:
        problem(f"the sidecar lists {len(rows)} samples, the manifest {shards.counts[shard]}")
    if len({row["key"] for row in rows}) < len(rows):
        problem("a key occurs more than once")
    ours = shards.sidecars[shard] == sidecar_path(shards.paths[shard])  # a tar of our making has nothing else in it
    decoding: deque[tuple[dict[str, Any], Future[Made]]] = deque()

    def decoded() -> None:
        row, future = decoding.popleft()
        try:
            made = future.result()
        except BadImage as error:
            problem(f"does not decode: {error.reason}: {error.detail}", row["key"])
            return
        found = made.clips[0] if isinstance(made, Clips) else made
        assert isinstance(found, Clip | Stored)
        size = found.width, found.height
        if size != (row["width"], row["height"]):
            problem(f"is {size[0]} x {size[1]} pixels, not {row['width']} x {row['height']}", row["key"])
        for name in () if isinstance(found, Stored) else ("frames", "frame_rate", "audio_rate", "duration"):
            if getattr(found, name) != row[name]:
                problem(f"has {name} {getattr(found, name)}, not {row[name]}", row["key"])

    size, digest = 0, ""
    try:
        with open_file(url) as raw:
            file = _Hashed(raw)
            samples = _images(file, rows, ours, problem) if shards.media == "image" else _runs(file, rows, problem)
            for row, data in samples:
                if len(data) != row["length"]:
                    problem(f"{len(data)} bytes instead of {row['length']}", row["key"])
                elif google_crc32c.value(data) != row["crc32c"] or content_sha256(data) != row["sha256"]:
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
    if (size, digest) != (shards.bytes[shard], shards.sha256[shard]):
        problem("the tar's size or hash is not that of the manifest")
    return Check(url, len(rows), size, problems)


Rows = Sequence[Mapping[str, Any]]
Tell = Callable[[str, str], None]


def _images(file: _Hashed, rows: Rows, ours: bool, problem: Tell) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The members of the tar ``file`` that are samples, by their place; then what is wrong with the others."""
    expected = {row["offset"]: row for row in rows}
    try:
        with tarfile.open(fileobj=cast(BinaryIO, file), mode="r|", bufsize=READ) as tar:
            for member in tar:
                row = expected.pop(member.offset_data, None)
                if row is None:
                    if ours:
                        problem(f"{member.name} is not in the sidecar", "")
                    continue
                if ours and member.name != f"{row['key']}.jpg":
                    problem(f"the member is called {member.name}", row["key"])
                payload = tar.extractfile(member)
                yield dict(row), payload.read() if payload is not None else b""
    finally:
        for row in expected.values():
            problem(f"there is no member at byte {row['offset']} of the tar", row["key"])


def _runs(file: _Hashed, rows: Rows, problem: Tell) -> Iterator[tuple[dict[str, Any], bytes]]:
    """The samples of several members, which stand one behind the other from the first byte of ``file`` on."""
    for row in rows:
        if row["offset"] != file.at:
            problem(f"does not begin at byte {file.at} of the tar, where the sample before it ends", row["key"])
            break
        yield dict(row), file.read(row["length"])


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
