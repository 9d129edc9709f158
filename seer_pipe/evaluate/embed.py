"""The features of a whole shard set as one Parquet file, and the clusters that its images belong to.

    OUT             one row per image, in the order of the set: key, shard, index, cluster, confidence, feature
    OUT.parts/      what is finished so far, a file for every PART images; gone when OUT is there

A part is written whole or not at all, and says which weights and which set it is of, so that a run that was killed
continues where it stopped, and several ranks share the parts.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import uuid
from collections import Counter, OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from seer_pipe.data.order import Ints, Plan
from seer_pipe.distributed.world import World, join
from seer_pipe.errors import UserError
from seer_pipe.evaluate.assign import assign
from seer_pipe.evaluate.embeddings import CLUSTERS, DATA, IDENTITY, weights_of
from seer_pipe.evaluate.features import Images, extract
from seer_pipe.evaluate.labels import left_out
from seer_pipe.evaluate.pictures import FilePictures, ShardPictures
from seer_pipe.evaluate.subject import Subject, load_subject
from seer_pipe.shards import ShardSet, to_parquet
from seer_pipe.share import ALL, Share
from seer_pipe.store import FolderStore

PART = 4096  # images
PART_NAME = re.compile(r"\d{12}\.parquet")


def embed(
    path: Path,
    data: str,
    out: Path,
    *,
    part: int = PART,
    share: Share = ALL,
    say: Callable[[str], None] = lambda _: None,
) -> dict[str, Any] | None:
    """Write the embeddings of the shard set ``data`` to ``out``, or continue it; None but on the first rank.

    ``part``: images that are kept at once, and at most lost by a kill. ``share``: only this share of the parts; None
    where some are left to the others then, of which the last writes ``out``. Images that cannot be read or decoded are
    left out. A file that is already there, of other weights or of another set, is a UserError.
    """
    with join() as world:
        subject, shards = load_subject(path, device=world.device), ShardSet.open(data)
        work = _Work(subject, shards, out, part)
        if not work.done():
            work.make_parts(share, world, say)
            world.barrier()
            if world.is_first:
                if missing := work.missing():
                    say(f"share {share} is done; {len(missing)} of {len(work.starts)} parts are left to other shares")
                    return None
                work.join_parts()
        if not world.is_first:
            return None
        rows = pq.read_metadata(out).num_rows
        left = Counter(excluded=len(shards) - len(work.usable), unreadable=len(work.usable) - rows)
        about = {"images": rows, "left_out": left_out(left), "width": subject.trunk.width}
        return {"embeddings": str(out), **about, "clusters": work.clusters}


class _Work:
    """The parts of one file of embeddings."""

    def __init__(self, subject: Subject, shards: ShardSet, out: Path, part: int) -> None:
        self.subject, self.shards, self.out = subject, shards, out
        self.store = FolderStore(f"{out}.parts")
        self.pictures = ShardPictures(shards)
        self.usable = self.pictures.usable
        self.starts = range(0, len(self.usable), part)
        self.keys = _Keys(shards)
        self.plan = Plan(shards.counts, 1, seed=0)
        self.clusters = subject.clusters
        kept = hashlib.sha256(self.usable.tobytes()).hexdigest()
        identity = f"{subject.digest} {shards.fingerprint} {kept}"
        self.schema = pa.schema(
            [
                ("key", pa.string()),
                ("shard", pa.string()),  # path of the tar, as the manifest has it
                ("index", pa.int32()),  # number of the sample in its shard
                ("cluster", pa.int32()),  # null where the subject's head names none
                ("confidence", pa.float32()),
                ("feature", pa.list_(pa.float32(), subject.trunk.width)),
            ],
            metadata={
                IDENTITY: identity.encode(),
                b"seer_pipe.backbone": subject.trunk.name.encode(),
                CLUSTERS: str(self.clusters).encode(),
                b"seer_pipe.images_seen": str(subject.images).encode(),
                DATA: shards.store.url.encode(),
            },
        )

    def done(self) -> bool:
        if not self.out.exists():
            return False
        if not self._is_ours(self.out):
            raise UserError(
                f"{self.out}: holds something else, or embeddings of other weights or images; "
                "choose another file, or remove it"
            )
        return True

    def missing(self, share: Share = ALL) -> list[int]:
        """The parts of a share that are not there, or are of other weights or another set."""
        return [start for start in share.part(self.starts) if not self._is_ours(self.store.local_path(_name(start)))]

    def make_parts(self, share: Share, world: World, say: Callable[[str], None]) -> None:
        """Write what this rank has to of the parts of a share that are missing."""
        for entry in self.store.list() if world.is_first else ():
            if not PART_NAME.fullmatch(entry.path):
                raise UserError(f"{self.store.url}/{entry.path}: not a part of embeddings; choose another --out")
        missing = self.missing(share)
        world.barrier()  # all have looked before any writes
        images = Images(self.pictures, self.subject.size, self.subject.frames, device=str(world.device))
        try:
            for start in missing[world.rank :: world.size]:
                numbers = self.usable[start : start + self.starts.step]
                self.store.put(_name(start), to_parquet(self._table(images, numbers)))
                say(f"embedded images {start} to {start + len(numbers) - 1} of {len(self.usable)}")
        finally:
            images.close()

    def join_parts(self) -> None:
        """One file of all parts, a row group each, with no more than one in memory."""
        joined = self.store.local_path(f"{self.store.TEMPORARY}{uuid.uuid4().hex}")
        joined.parent.mkdir(parents=True, exist_ok=True)
        try:
            with pq.ParquetWriter(joined, self.schema, compression="zstd") as writer:
                for start in self.starts:
                    writer.write_table(pq.read_table(pa.BufferReader(self.store.get(_name(start)))))
            FolderStore(self.out.parent).put_file(self.out.name, joined)
        except FileNotFoundError:  # another share was the last as well, and quicker
            if not self.done():
                raise
        shutil.rmtree(self.store.root, ignore_errors=True)

    @torch.no_grad()
    def _table(self, images: Images, numbers: Ints) -> pa.Table:
        device = next(self.subject.trunk.parameters()).device
        rows = []
        for batch, pixels in images.batches(numbers):
            features = self.subject.trunk(pixels.to(device)).float()
            rows.append(self._rows(np.array(batch), features))
        return pa.concat_tables(rows) if rows else self.schema.empty_table()

    def _rows(self, numbers: Ints, features: torch.Tensor) -> pa.Table:
        places = self.plan.places(numbers)
        found = assign(self.subject, features)
        nothing = pa.nulls(len(numbers))
        flat = pa.array(features.cpu().numpy().reshape(-1))
        columns = [
            self.keys.of(places.shard, places.index),
            pa.array([self.shards.paths[shard] for shard in places.shard.tolist()], pa.string()),
            pa.array(places.index, pa.int32()),
            nothing.cast(pa.int32()) if found is None else pa.array(found.cluster.numpy()),
            nothing.cast(pa.float32()) if found is None else pa.array(found.confidence.numpy()),
            pa.FixedSizeListArray.from_arrays(flat, self.subject.trunk.width),
        ]
        return pa.table(columns, schema=self.schema)

    def _is_ours(self, file: Path) -> bool:
        try:
            about = pq.read_schema(file).metadata or {}
        except (pa.ArrowInvalid, OSError):
            return False
        return about.get(IDENTITY) == self.schema.metadata[IDENTITY]


def _name(start: int) -> str:
    return f"{start:012d}.parquet"


class _Keys:
    """The keys of samples, with the columns of the last few shards kept."""

    KEEP = 16

    def __init__(self, shards: ShardSet) -> None:
        self._shards = shards
        self._kept: OrderedDict[int, pa.ChunkedArray] = OrderedDict()

    def of(self, shard: Ints, index: Ints) -> pa.Array:
        keys = [self._column(s)[i].as_py() for s, i in zip(shard.tolist(), index.tolist(), strict=True)]
        return pa.array(keys, pa.string())

    def _column(self, shard: int) -> pa.ChunkedArray:
        if shard not in self._kept:
            self._kept[shard] = self._shards.sidecar(shard, ["key"])["key"]
            if len(self._kept) > self.KEEP:
                self._kept.popitem(last=False)
        return self._kept[shard]


def features_of_files(path: Path, files: list[Path], embeddings: Path) -> torch.Tensor:
    """Features [n, width] of image files, by the weights that the file ``embeddings`` was made with: those of ``path``.

    UserError where the weights are others, or an image cannot be read.
    """
    subject = load_subject(path)
    if weights_of(embeddings) != subject.digest:
        raise UserError(f"{embeddings}: of other weights than {path} has; remove it, and it is computed again")
    pictures = Images(FilePictures(files, ", ".join(map(os.fspath, files))), subject.size, subject.frames)
    try:
        found = extract(subject.trunk, pictures)
    finally:
        pictures.close()
    for number, reason in sorted(pictures.left_out.items()):
        raise UserError(f"{files[number]}: {reason.removeprefix(f'{files[number]}: ')}")
    return found.matrix
