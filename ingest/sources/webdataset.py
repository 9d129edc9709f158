"""An existing set: WebDataset tars of any making, or a shard set of our own."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Sequence
from functools import partial
from itertools import chain, count, groupby, islice, pairwise
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from ingest.files import expand, labels, listing, open_file
from ingest.reasons import Reason
from ingest.sources import FILE, PROBLEM, kept_fields, listed
from ingest.sources.archive import Member, TarReader, members
from ingest.sources.beside import LONGEST_TEXT, beside
from ingest.sources.lists import find
from ingest.sources.readers import DAMAGE, OfMembers, Readers
from seer_pipe.errors import UserError
from seer_pipe.shards import MANIFEST, ShardSet
from seer_pipe.store import is_remote, open_store

BATCH = 10_000  # rows of a table
#: What a sample's image, video or sound may be called; a name says which member it is, its content says what it is.
IMAGES = ("jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff", "avif", "jp2", "ppm", "img", "image")
VIDEOS = ("mp4", "m4v", "mov", "webm", "mkv", "avi", "mpg", "mpeg", "ts", "flv", "wmv", "ogv", "3gp", "video")
SOUNDS = ("flac", "wav", "mp3", "m4a", "aac", "ogg", "oga", "opus", "wma", "aif", "aiff", "audio")
#: Of each kind what is taken: the first of these of which a sample has any.
MEMBERS = {"image": (IMAGES,), "video": (VIDEOS,), "audio": (SOUNDS, VIDEOS)}
NONE = {"image": Reason.NOT_AN_IMAGE, "video": Reason.NO_VIDEO, "audio": Reason.NO_SOUND}
FIELDS = [
    pa.field("source", pa.string()),
    pa.field("key", pa.string()),
    pa.field("size", pa.int64()),
    pa.field("place", pa.int64()),
]


class WebDatasetSource(OfMembers):
    """The samples of the tar, pattern or folder of tars ``where``, or of a shard set of ours, in order; of the
    latter without those that its list excludes.

    ``media`` is what is taken of a sample: its image, video or audio. ``keep`` names what the new sidecar keeps of it:
    keys of its ``json`` member, or other members of text by their extension (``txt``); of a set of ours, columns of the
    sidecars.
    """

    knows_ours = True

    def __init__(self, where: str, keep: Sequence[str], max_bytes: int, media: str = "image") -> None:
        self._keep, self._max_bytes, self._media = list(keep), max_bytes, media
        self._readers = Readers(lambda file: TarReader(open_file(file)))
        self._set: ShardSet | None = None
        if self.knows_ours and is_shard_set(where):
            self._set = ShardSet.open(where)
            if self._set.media != "image" or media != "image":
                raise UserError(f"{where}: holds {self._set.holds}; --media {media} reads what is not cut yet")
            excluded = self._set.excluded
            identity = {"set": self._set.fingerprint, "excluded": hashlib.sha256(excluded.tobytes()).hexdigest()}
            schema = self._set.sidecar(0).schema if self._set.paths else pa.schema([])
            fields = [schema.field(find(name, schema.names, where)) for name in self._keep]
        else:
            self._files = expand(where, [".tar"])
            identity = {"set": listing(self._files)}
            fields = [pa.field(name, pa.string()) for name in self._keep]
        self._columns = [field.name for field in fields]
        self.kept = kept_fields(fields, media)
        self.identity = {"kind": "webdataset", **identity, "keep_columns": self._keep}
        self._schema = pa.schema([*FIELDS, *PROBLEM, FILE, *listed(self.kept)])

    def tables(self) -> Iterator[pa.Table]:
        if self._set is not None:
            yield from self._own_tables(self._set)
            return
        for file, label in zip(self._files, labels(self._files), strict=True):
            rows = samples(file, label, self._keep, self._media)
            while batch := list(islice(rows, BATCH)):
                yield pa.table([*map(list, zip(*batch, strict=True))], schema=self._schema)

    def _own_tables(self, shards: ShardSet) -> Iterator[pa.Table]:
        for number, (start, stop) in enumerate(pairwise(shards.starts)):
            names = ["source", "key", "length", "offset", *self._columns]
            table = shards.sidecar(number, list(dict.fromkeys(names))).select(names)
            table = table.filter(pa.array(~np.isin(np.arange(start, stop), shards.excluded)))
            nothing = pa.nulls(table.num_rows, pa.string())
            file = pa.array([os.fsencode(shards.url(number))] * table.num_rows, pa.binary())
            columns = [*table.columns[:4], nothing, nothing, file, *table.columns[4:]]
            yield pa.table(columns, self._schema.names).cast(self._schema)


def is_shard_set(where: str) -> bool:
    folder = (is_remote(where) and not where.endswith(".tar")) or Path(where).is_dir()
    return folder and open_store(where).size(MANIFEST) is not None


def samples(file: str, label: str, keep: Sequence[str], media: str) -> Iterator[tuple[Any, ...]]:
    """A row an image (video, sound) among the members of a sample, which stand next to each other; a sample without one
    is a row too.

    Keys are unique in a tar: an image besides the first, or of a sample whose key was there before, has its name
    without the extension as its key, and a number where that was there too.
    """
    used = set[str]()
    with open_file(file) as data:
        for key, group in groupby(members(file), key=lambda member: split(member.name)[0]):
            found = list(group)
            parts = {split(member.name)[1]: member for member in reversed(found)}  # of equal names the first
            kinds = ([m for m in found if split(m.name)[1].rpartition(".")[2] in names] for names in MEMBERS[media])
            images: list[Member] = next(filter(None, kinds), [])
            if not images:
                has = ", ".join(filter(None, reversed(parts))) or "no extension"
                none = Member(key, 0, 0, NONE[media], f"no {media} among its members: {has}")
                images = [next((member for member in found if member.problem), none)]
            said = beside(partial(text_of, data, parts), keep) if keep else ()
            for image in images:
                name = unique(key, image.name.rpartition(".")[0], used)
                yield f"{label}/{name}", name, *image[1:], os.fsencode(file), *said


def unique(key: str, stem: str, used: set[str]) -> str:
    """``key``, or else ``stem``, or else that with a number, whichever is not in ``used`` yet; and now it is."""
    numbered = (f"{stem}~{number}" for number in count(2))
    found = next(name for name in chain((key, stem), numbered) if name not in used)
    used.add(found)
    return found


def split(name: str) -> tuple[str, str]:
    """Key and extensions of a member's name: what comes before and after the first dot of its last part."""
    folder, slash, last = name.rpartition("/")
    stem, _, extensions = last.partition(".")
    return folder + slash + stem, extensions.lower()


def text_of(data: BinaryIO, parts: dict[str, Member], name: str) -> str:
    """The member of the sample with the extension ``name``, or nothing."""
    if name not in parts or parts[name].size > LONGEST_TEXT:
        return ""
    try:
        return TarReader(data).read(parts[name].place, parts[name].size).decode("utf-8", "backslashreplace")
    except DAMAGE:  # the image behind it will show it
        return ""
