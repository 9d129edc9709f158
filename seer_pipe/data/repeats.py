"""How often a sample comes in an epoch, where that is not once: a file of whole numbers, and what the order keeps.

    FILE.parquet    a row a sample that does not come once, in the order of the set: its number there, and `repeats`,
                    0 where it is left out; the metadata name the set by its fingerprint

The first copies of all samples are read as if there were no others. The further ones are a row of their own: for each
number of repeats, and each copy beyond the first, the samples that have it, in the order of the set. So a position in
the row is a sample and a copy by arithmetic, and what is kept is a number for each sample that comes several times.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq

from seer_pipe.errors import UserError
from seer_pipe.shards import FINGERPRINT_KEY, ShardSet, store_at
from seer_pipe.store import open_in, split_url

Ints = npt.NDArray[np.int64]

SCHEMA = pa.schema([("sample", pa.int64()), ("repeats", pa.uint32())])


def _none() -> Ints:
    return np.zeros(0, np.int64)


@dataclass(frozen=True)
class Repeats:
    """Samples that do not come once in an epoch, [n], by their numbers in the set, rising, and how often they do."""

    sample: Ints = field(default_factory=_none)
    times: Ints = field(default_factory=_none)


class Copies:
    """The further copies of ``samples`` [n], numbers of the set that rise, of which each comes ``times`` [n] > 1.

    It keeps 4 bytes a sample (8 in a set of more than 2^32), however often that comes.
    """

    def __init__(self, samples: Ints, times: Ints) -> None:
        order = np.argsort(times, kind="stable")
        small = len(samples) == 0 or samples[-1] < 2**32
        self._samples = samples[order].astype(np.uint32 if small else np.int64)
        often, self._size = np.unique(times, return_counts=True)
        self._first: Ints = np.cumsum(self._size) - self._size  # of those that come equally often, in the samples
        self._often: Ints = often.astype(np.int64)
        self._end: Ints = np.cumsum(self._size * (self._often - 1))  # of their copies, in the row

    def __len__(self) -> int:
        return int(self._end[-1]) if len(self._end) else 0

    def at(self, place: Ints) -> tuple[Ints, Ints]:
        """The sample at each ``place`` [m] of the row, and which copy of it: 1 is the second."""
        group = np.searchsorted(self._end, place, side="right")
        copy, nth = np.divmod(
            place - self._end[group] + self._size[group] * (self._often[group] - 1), self._size[group]
        )
        return self._samples[self._first[group] + nth].astype(np.int64), copy + 1

    @property
    def digest(self) -> str:
        """SHA-256 of which samples come how often."""
        parts = (self._samples.astype(np.int64), self._often, self._size.astype(np.int64))
        return hashlib.sha256(b"".join(part.tobytes() for part in parts)).hexdigest()


def write_repeats(file: Path, shards: ShardSet, repeats: Repeats) -> None:
    """Write ``repeats`` of a set, whole or not at all; a sample that comes once may be among them."""
    rows = np.flatnonzero(repeats.times != 1)
    table = pa.table([repeats.sample[rows], repeats.times[rows].astype(np.uint32)], SCHEMA)
    partial = file.with_name(f".{file.name}")
    about = {FINGERPRINT_KEY: shards.fingerprint.encode()}
    pq.write_table(table.replace_schema_metadata(about), partial, compression="zstd")
    partial.replace(file)


def read_repeats(url: str, shards: ShardSet) -> Repeats:
    """Those that a file, local or in a store, has for ``shards``. UserError where it cannot be used for them."""
    root, name = split_url(url)
    try:
        with open_in(store_at(root), name) as file:
            table = pq.read_table(file, columns=SCHEMA.names)
    except FileNotFoundError:
        raise UserError(f"data.repeats: {url}: no such file; seer-pipe curate --repeats makes one") from None
    except (OSError, pa.ArrowException) as error:
        raise UserError(f"data.repeats: {url}: not readable: {error}") from None
    if (table.schema.metadata or {}).get(FINGERPRINT_KEY) != shards.fingerprint.encode():
        raise UserError(f"data.repeats: {url}: was not made for {shards.store.url} as it is now; make it again")
    found = Repeats(*(table[name].to_numpy().astype(np.int64) for name in SCHEMA.names))
    if len(found.sample) and (
        found.sample[0] < 0 or found.sample[-1] >= len(shards) or (np.diff(found.sample) <= 0).any()
    ):
        raise UserError(f"data.repeats: {url}: numbers that are not rising or not of the set; make it again")
    return found
