"""The shard set or sets of a run, and their order: what a config's section ``data`` means.

Several sets are mixed by weight. The lanes of the batch are divided among them once, as near to the weights as whole
lanes allow, and every set has a plan of its own for its share. So a batch always holds the same number of images of
each, a set that is through begins its own next epoch, and the state of all is still the number of finished steps.
"""

from __future__ import annotations

import hashlib
from bisect import bisect_right
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seer_pipe.config import Data
from seer_pipe.data.cache import Cache
from seer_pipe.data.order import Ints, Places, Plan
from seer_pipe.data.random import derive_key
from seer_pipe.data.repeats import Repeats, read_repeats
from seer_pipe.errors import UserError
from seer_pipe.shards import HOLDS, ShardIndex, ShardSet


class ShardSets:
    """Several shard sets as one: their shards are numbered through, in order."""

    def __init__(self, sets: Sequence[ShardSet]) -> None:
        self.sets = list(sets)
        self._ends: list[int] = np.cumsum([len(shards.paths) for shards in sets]).tolist()
        self.counts: npt.NDArray[np.int64] = np.concatenate([shards.counts for shards in sets])
        self.bytes: npt.NDArray[np.int64] = np.concatenate([shards.bytes for shards in sets])
        self.sha256 = [sha256 for shards in sets for sha256 in shards.sha256]

    def __len__(self) -> int:
        """Number of samples."""
        return int(self.counts.sum())

    @cached_property
    def paths(self) -> list[str]:
        return [shards.url(shard) for shards in self.sets for shard in range(len(shards.paths))]

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(shards.fingerprint for shards in self.sets).encode()).hexdigest()

    def _find(self, shard: int) -> tuple[ShardSet, int]:
        which = bisect_right(self._ends, shard)
        return self.sets[which], shard - (self._ends[which - 1] if which else 0)

    def index(self, shard: int) -> ShardIndex:
        shards, number = self._find(shard)
        return shards.index(number)

    def sidecar(self, shard: int) -> pa.Table:
        shards, number = self._find(shard)
        return shards.sidecar(number)

    def url(self, shard: int) -> str:
        shards, number = self._find(shard)
        return shards.url(number)

    def is_local(self) -> bool:
        return all(shards.is_local() for shards in self.sets)

    def get_range(self, shard: int, start: int, length: int) -> bytes:
        shards, number = self._find(shard)
        return shards.get_range(number, start, length)

    def probe(self, shard: int) -> None:
        shards, number = self._find(shard)
        shards.probe(number)


class Mix:
    """The order of several sets: plan number i has the lanes that ``apportion`` gives it in every batch.

    ``plans``: one per set, all with as many images per lane and step. It answers what ``Plan`` does; shards,
    samples and chunks are numbered through the sets in their order.
    """

    def __init__(self, plans: Sequence[Plan]) -> None:
        self.plans = list(plans)
        self.batch, self.lanes = sum(p.batch for p in plans), sum(p.lanes for p in plans)
        self.samples = sum(p.samples for p in plans)
        self.total = sum(p.total for p in plans)
        self.chunk, self.window = max(p.chunk for p in plans), max(p.window for p in plans)
        self._shards: Ints = np.cumsum([0, *(len(p.counts) for p in plans)])
        self._samples: Ints = np.cumsum([0, *(p.samples for p in plans)])
        self._chunks: Ints = np.cumsum([0, *(p.chunks for p in plans)])
        # Every set's lanes are spread evenly over the batch, so that every rank gets its share of each set.
        which = np.repeat(np.arange(len(plans)), [p.lanes for p in plans])
        nth = np.concatenate([np.arange(p.lanes) for p in plans])
        order = np.argsort((nth + 0.5) / np.array([p.lanes for p in plans])[which], kind="stable")
        self._which, self._nth = which[order], nth[order]  # of each lane: its set, and its number there

    @property
    def steps_per_epoch(self) -> int:
        """Steps that take as many images as all sets together hold; each set has epochs of its own."""
        return self.total // self.batch

    @property
    def dropped(self) -> int:
        """Samples that an epoch skips at most, over all sets; other ones in every epoch."""
        return sum(plan.dropped for plan in self.plans)

    @property
    def chunks(self) -> int:
        return int(self._chunks[-1])

    @property
    def correlation(self) -> tuple[float, float]:
        """As of a ``Plan``, by the shares that the sets have in the batch."""
        each = np.array([plan.correlation for plan in self.plans]) * [[plan.batch / self.batch] for plan in self.plans]
        following, most = each.sum(0).tolist()
        return following, most

    @cached_property
    def fingerprint(self) -> str:
        return hashlib.sha256("\n".join(plan.fingerprint for plan in self.plans).encode()).hexdigest()

    def _shares(self, slots: Ints) -> list[tuple[int, Ints, Ints]]:
        """The sets that ``slots`` are filled from: its number, the rows of ``slots``, and its own slots there."""
        share = self.batch // self.lanes
        lane, place = np.divmod(slots, share)
        which, own = self._which[lane], self._nth[lane] * share + place
        return [(i, rows := np.flatnonzero(which == i), own[rows]) for i in np.unique(which).tolist()]

    def _through(self, i: int, places: Places) -> Places:
        """Places of plan number ``i``, numbered through all sets."""
        return replace(
            places,
            shard=places.shard + self._shards[i],
            sample=places.sample + self._samples[i],
            chunk=places.chunk + self._chunks[i],
        )

    def epoch_of(self, step: int, slots: Ints) -> Ints:
        epochs = np.zeros(len(slots), np.int64)
        for i, rows, own in self._shares(slots):
            epochs[rows] = self.plans[i].epoch_of(step, own)
        return epochs

    def locate(self, step: int | Ints, slots: Ints) -> Places:
        steps = np.broadcast_to(step, slots.shape)
        out = Places.empty(len(slots))
        for i, rows, own in self._shares(slots):
            out[rows] = self._through(i, self.plans[i].locate(steps[rows], own))
        return out

    def substitute(self, step: int, slots: Ints, attempt: int | Ints) -> Places:
        """As of a ``Plan``; from the same set."""
        attempts = np.broadcast_to(attempt, slots.shape)
        out = Places.empty(len(slots))
        for i, rows, own in self._shares(slots):
            out[rows] = self._through(i, self.plans[i].substitute(step, own, attempts[rows]))
        return out

    def members(self, chunk: int) -> Places:
        i = int(np.searchsorted(self._chunks, chunk, side="right")) - 1
        return self._through(i, self.plans[i].members(chunk - int(self._chunks[i])))


Shards = ShardSet | ShardSets
Order = Plan | Mix


class Known(NamedTuple):
    """What the order needs of a set."""

    counts: Sequence[int] | Ints  # samples of each shard
    excluded: Sequence[int] | Ints = ()  # their numbers
    repeats: Repeats = Repeats()


def apportion(weights: Sequence[float], lanes: int) -> list[int]:
    """``lanes`` divided by ``weights``: whole numbers, nearest by largest remainders, at least one each.

    UserError where there are more weights than lanes.
    """
    if len(weights) > lanes:
        raise UserError(f"data.sources: {len(weights)} sets for {lanes} lanes: raise train.batch or data.lanes")
    exact = np.array(weights) / sum(weights) * lanes
    shares = np.maximum(np.floor(exact).astype(np.int64), 1)
    while shares.sum() != lanes:
        up = 1 if shares.sum() < lanes else -1
        off = np.where((shares > 1) | (up > 0), up * (exact - shares), -np.inf)
        shares[int(np.argmax(off))] += up
    return [int(share) for share in shares]


def open_data(data: Data, batch: int, seed: int, media: Collection[str] = tuple(HOLDS)) -> tuple[Shards, Order]:
    """The shard set or sets of a run and the order of its batches. UserError where they cannot be used so, or hold
    something else than ``media``."""
    sets = [ShardSet.open(path) for path in data.paths]
    for path, shards in zip(data.paths, sets, strict=True):
        if shards.media not in media:
            taken = " or ".join(HOLDS[one] for one in media)
            raise UserError(f"{path}: holds {shards.holds}; what is asked for takes {taken}")
    known = [
        Known(shards.counts, shards.excluded, Repeats() if file is None else read_repeats(file, shards))
        for shards, file in zip(sets, data.repeats_of_paths, strict=True)
    ]
    order = order_of(data, batch, seed, known)
    return sets[0] if data.sources is None else ShardSets(sets), order


def order_of(data: Data, batch: int, seed: int, sets: Sequence[Known]) -> Order:
    """The order of the sets that ``data`` names, of which only this much need be known. UserError as of `open_data`."""
    if data.sources is None:
        return _plan(data, data.paths[0], sets[0], batch, data.lanes, seed)
    lanes = data.lanes or batch
    if batch % lanes:
        raise UserError(f"data.lanes {lanes}: must divide the batch of {batch}")
    shares = apportion([source.weight for source in data.sources], lanes)
    of = enumerate(zip(data.paths, sets, shares, strict=True))
    return Mix([
        _plan(data, path, known, share * (batch // lanes), share, int(derive_key(seed, i)) >> 1)
        for i, (path, known, share) in of
    ])  # fmt: skip


def _plan(data: Data, path: str, known: Known, batch: int, lanes: int | None, seed: int) -> Plan:
    try:
        return Plan(known.counts, batch, seed=seed, excluded=known.excluded, repeats=known.repeats, lanes=lanes,
                    chunk=data.chunk, window=data.window)  # fmt: skip
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def open_cache(data: Data) -> Cache | None:
    return None if data.cache is None else Cache(Path(data.cache.path).expanduser(), int(data.cache.gb * 1e9))
