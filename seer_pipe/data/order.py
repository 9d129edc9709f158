"""Which image stands at any place of any batch, as arithmetic.

The unit of reading is a *chunk*: ``chunk`` contiguous samples of one shard (what is left over at the ends of
shards is put together to chunks of its own). The specification, for epoch *e* of a set of N samples and batches of B:

1. A keyed bijection of (seed, *e*) permutes all chunks; laid end to end they are a row of N positions.
2. The row is cut into L equal *lanes*, L a divisor of B, and each lane into W equal *tracks*; W is the *window*.
   A track is read in order, from a keyed place of it to its end, then from its start to that place.
3. A lane's draws are counted through the epoch: B/L of them a step. W draws in a row are a *round*, which takes the
   next sample of each of the W tracks, in an order permuted by a key of (seed, *e*, lane, round). In the last round,
   only the tracks that are longer by one take part.

What follows from it:

- A batch comes from B different chunks (with L = B), of L*W that are open at a time; each is read front to end.
- Consecutive batches share no chunk but where a round ends, so that on a sorted set their counts of classes correlate
  by about (B/L/W)², and those of any two batches by B/L/W at most (``Plan.correlation``); a shuffle's by 0.
- The keyed start gives every image all places of an epoch with the same probability, and independently of any image of
  another chunk: so any two of them share a batch as often as in a full shuffle, whatever N, B and ``chunk`` have in
  common, and tracks go from chunk to chunk at different steps. (Two of one chunk, read one a round, do not meet.)
- With chunks of one sample, as in small sets, an epoch is a full shuffle.
- The state of it all is the number of finished steps.

Samples that are excluded do not count: positions are those of the kept samples. A sample that comes several times an
epoch has as many positions. Its further copies stand behind what is left over at the ends of shards (`repeats.py`), and
are cut into chunks with that: so copies are in different chunks, and meet each other as any two images do.

Nothing here grows with the number of samples or chunks, but for the lists of the excluded and of those that come
several times: all chunks but one have the same size, so a position is turned into a chunk by a division, and the
permutations are Feistel networks that are evaluated where they are needed.

    step, slot ──▶ lane, round, track ──▶ position in the row ──▶ chunk ──▶ shard and sample in it
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from seer_pipe.data.random import derive_key, mix64, uniform
from seer_pipe.data.repeats import Copies, Repeats
from seer_pipe.errors import UserError

#: Raised whenever the same inputs would give another order; part of the fingerprint.
ORDER_VERSION = 2
FEISTEL_ROUNDS = 6
MAX_CHUNK = 128  # samples: one ranged read of 4 to 12 MB of web images
WINDOW = 32  # tracks a lane: no two batches of a sorted set correlate by more than 1/32 then
CHUNKS_A_TRACK = 4  # at least, by default: chunks are smaller in small sets, down to one sample

Ints = npt.NDArray[np.int64]
Keys = npt.NDArray[np.uint64]

# What a key is for, so that no two uses share one.
_CHUNKS, _RAGGED, _ROUND, _SUBSTITUTE, _START = range(5)


def permute(x: npt.ArrayLike, size: npt.ArrayLike, key: npt.ArrayLike) -> Ints:
    """Where ``x`` goes under the bijection ``key`` of {0, …, size-1}; all three broadcast.

    A balanced Feistel network on the smallest even number of bits that holds ``size``, walked along its cycles
    until it is back inside (Black and Rogaway, "Ciphers with arbitrary finite domains", 2002).
    """
    shape = np.broadcast_shapes(np.shape(x), np.shape(size), np.shape(key))
    at, sizes, keys = (np.broadcast_to(np.asarray(a, np.uint64), shape).ravel() for a in (x, size, key))
    half = _half_bits(sizes)
    out = _feistel(at, half, keys)
    outside = np.flatnonzero(out >= sizes)
    while outside.size:
        out[outside] = walked = _feistel(out[outside], half[outside], keys[outside])
        outside = outside[walked >= sizes[outside]]
    return out.astype(np.int64).reshape(shape)


def _half_bits(sizes: Keys) -> Keys:
    """Bits of one half of the network: 4**half >= size, half >= 1."""
    _, exponent = np.frexp(np.maximum(sizes, 1).astype(np.float64) - 0.5)  # 2**exponent >= size
    half: Keys = np.maximum((exponent + 1) // 2, 1).astype(np.uint64)
    return half


def _feistel(x: Keys, half: Keys, key: Keys) -> Keys:
    mask = (np.uint64(1) << half) - np.uint64(1)
    left, right = x >> half, x & mask
    for turn in range(FEISTEL_ROUNDS):
        left, right = right, left ^ (mix64(key + mix64(right + (np.uint64(turn) << np.uint64(32)))) & mask)
    return (left << half) | right


@dataclass(frozen=True)
class Places:
    """Where samples stand: arrays of one length."""

    shard: Ints  # number of the shard in the manifest
    index: Ints  # number of the sample in its shard
    sample: Ints  # number of the sample in the whole set, the same in every plan
    chunk: Ints  # number of the chunk that it is read with, the same in every epoch
    inside: Ints  # its place in that chunk
    copy: Ints  # which of its copies in an epoch, from 0

    def drawn_as(self, samples: int) -> Ints:
        """What keys the views of each, in a set or mix of so many ``samples``: its number, and for a further copy one
        beyond the set, so that the copies of an epoch are seen differently."""
        return self.sample + self.copy * samples

    def __len__(self) -> int:
        return len(self.sample)

    def __getitem__(self, rows: Any) -> Places:
        return Places(*(getattr(self, field.name)[rows] for field in fields(self)))

    def __setitem__(self, rows: Any, others: Places) -> None:
        for field in fields(self):
            getattr(self, field.name)[rows] = getattr(others, field.name)

    @classmethod
    def empty(cls, n: int) -> Places:
        return cls(*(np.empty(n, np.int64) for _ in fields(cls)))


def slots_of(rank: int, world: int, batch: int) -> Ints:
    """The places of the global batch that ``rank`` of ``world`` fills: a contiguous share.

    UserError when ``world`` does not divide ``batch``, with the nearest world sizes that do.
    """
    if batch % world:
        legal = [w for w in range(1, batch + 1) if batch % w == 0]
        near = " or ".join(map(str, sorted(sorted(legal, key=lambda w: abs(w - world))[:2])))
        raise UserError(f"{world} ranks cannot share a batch of {batch}: use {near} ranks, or another batch")
    share = batch // world
    return np.arange(rank * share, (rank + 1) * share)


class Plan:
    """The order of a shard set for one global batch size.

    ``counts``: samples of each shard, [S]. ``batch``: B, images per step over all ranks. ``seed``: of the order.
    ``excluded``: numbers of excluded samples, rising; the order is one of the others alone. ``repeats``: samples
    that come several times an epoch, or not at all.
    ``chunk``: samples a chunk; by default at most 128, and less where the set is small, so that a track has four
    chunks at least. ``lanes``: L, a divisor of B; by default B. ``window``: W, the tracks of a lane; with L that is
    how many chunks are open at a time, L*W.
    """

    def __init__(
        self,
        counts: Sequence[int] | Ints,
        batch: int,
        *,
        seed: int,
        excluded: Sequence[int] | Ints = (),
        repeats: Repeats = Repeats(),
        lanes: int | None = None,
        chunk: int | None = None,
        window: int = WINDOW,
    ) -> None:
        everything: Ints = np.asarray(counts, np.int64)
        self._first: Ints = np.cumsum(everything) - everything  # number of each shard's first sample
        self.samples = int(everything.sum())  # excluded ones too
        out = np.asarray(excluded, np.int64)
        if (repeats.times == 0).any():
            out = np.union1d(out, repeats.sample[repeats.times == 0])
        several = (repeats.times > 1) & ~np.isin(repeats.sample, out)
        self._copies = Copies(repeats.sample[several], repeats.times[several])
        per_shard = np.diff(np.searchsorted(out, np.append(self._first, self.samples)))
        self.counts: Ints = everything - per_shard  # of the samples that are kept
        # Kept samples before each excluded one. This and the copies grow, so 4 bytes each where that will do.
        self._gaps = (out - np.arange(len(out))).astype(np.uint32 if self.samples < 2**32 else np.int64)
        self.kept = int(self.counts.sum())
        self.repeated = len(self._copies)  # images of an epoch that are a sample's second or later copy
        self.total = self.kept + self.repeated  # images of an epoch
        self.batch, self.seed, self.window = batch, seed, window
        self.lanes = batch if lanes is None else lanes
        if batch < 1 or self.lanes < 1 or batch % self.lanes:
            raise UserError(f"data.lanes {self.lanes}: must divide the batch of {batch}")
        if self.samples and not self.total:
            raise UserError(
                f"all {self.samples} images of the set are excluded: delete its excluded.parquet to have them, or "
                "leave out data.repeats"
            )
        if self.total < batch:
            raise UserError(f"{self.total} images are fewer than a batch of {batch}: lower train.batch")
        self.chunk = chunk or min(MAX_CHUNK, max(1, self.total // (CHUNKS_A_TRACK * self.lanes * window)))
        whole, left = np.divmod(self.counts, self.chunk)
        self._kept_start: Ints = np.cumsum(self.counts) - self.counts  # kept samples before each shard
        self._whole_end: Ints = np.cumsum(whole)  # whole chunks up to each shard's end
        self._whole_before: Ints = self._whole_end - whole
        self._left_start: Ints = whole * self.chunk  # first sample of a shard's left-over
        self._left_end: Ints = np.cumsum(left)  # left-over samples up to each shard's end
        self._left_before: Ints = self._left_end - left
        self._whole = int(self._whole_end[-1])
        self._left = int(self._left_end[-1])  # behind them stand the further copies
        made, self._ragged = divmod(self._left + self.repeated, self.chunk)
        self._equal = self._whole + made  # chunks of full size; one more, of `_ragged` samples, may follow

    @property
    def steps_per_epoch(self) -> int:
        return self.total // self.batch

    @property
    def dropped(self) -> int:
        """Samples that an epoch skips, fewer than a batch; other ones in every epoch."""
        return self.total - self.steps_per_epoch * self.batch

    @property
    def chunks(self) -> int:
        return self._equal + (self._ragged > 0)

    @cached_property
    def fingerprint(self) -> str:
        """Says whether a state of one plan means the same in another."""
        about = [ORDER_VERSION, self.batch, self.lanes, self.chunk, self.window, self.seed, self.counts.tolist()]
        if len(self._gaps):
            about.append(hashlib.sha256(self._gaps.astype(np.int64).tobytes()).hexdigest())
        if self.repeated:
            about.append(self._copies.digest)
        return hashlib.sha256(json.dumps(about).encode()).hexdigest()

    def epoch_of(self, step: int, slots: Ints) -> Ints:
        """The epoch, from 0, that each of ``slots`` [n] is in at step ``step``, from 0."""
        return np.full(len(slots), step // self.steps_per_epoch)

    @property
    def correlation(self) -> tuple[float, float]:
        """What remains of the order of a sorted set: the correlation of the counts of classes of consecutive batches,
        and the largest of any two batches of an epoch; a full shuffle has 0. Of chunks that hold one class each.

        Two draws of a lane come from one track with probability 1/W at most (squared for consecutive batches), and
        from one chunk of it rather than from two with 1 - 1/chunk. What a batch takes of all chunks is then missing
        in the others, as in any drawing without replacement.
        """
        share = min(1.0, self.batch / self.lanes / self.window)
        taken = self.batch / self.chunks
        if taken >= 1:
            return 0.0, 0.0
        same = np.array([share * share, share]) * (1 - 1 / self.chunk)
        following, most = np.maximum((same - taken) / (1 - taken), 0.0).tolist()
        return following, most

    def locate(self, step: int | Ints, slots: Ints) -> Places:
        """The samples at ``slots`` (0 … B-1, [n]) of step ``step`` (from 0, or one a slot, [n]): n places."""
        epoch, turn = np.divmod(np.asarray(step), self.steps_per_epoch)
        share = self.batch // self.lanes
        lane, nth = np.divmod(slots, share)
        start = lane * self.total // self.lanes
        length = (lane + 1) * self.total // self.lanes - start
        chunk, inside = self._row(epoch, start + self._along(epoch, lane, turn * share + nth, length))
        return self._at(chunk, inside)

    def _along(self, epoch: Ints, lane: Ints, draw: Ints, length: Ints) -> Ints:
        """The place in each lane, of ``length``, that draw number ``draw`` of the epoch takes; all [n]."""
        common, longer = np.divmod(length, self.window)  # length of all tracks; how many, the first, have one more
        round_, nth = np.divmod(draw, self.window)
        tracks = np.where(round_ < common, self.window, longer)
        track = permute(nth, tracks, derive_key(self.seed, _ROUND, epoch, lane, round_))
        size = common + (track < longer)
        first = derive_key(self.seed, _START, epoch, lane, track) % size.astype(np.uint64)
        along: Ints = track * common + np.minimum(track, longer) + (round_ + first.astype(np.int64)) % size
        return along

    def _row(self, epoch: Ints, position: Ints) -> tuple[Ints, Ints]:
        """The chunk at each position [n] of the permuted row, and the place inside it."""
        key = derive_key(self.seed, _CHUNKS, epoch)
        turned = derive_key(self.seed, _RAGGED, epoch) % np.uint64(self._equal + 1)
        before = turned.astype(np.int64) * self.chunk
        past = position - before  # the ragged chunk stands somewhere else in every epoch
        ragged = (past >= 0) & (past < self._ragged)
        place, inside = np.divmod(np.where(past < self._ragged, position, position - self._ragged), self.chunk)
        chunk = permute(np.minimum(place, max(self._equal - 1, 0)), max(self._equal, 1), key)
        return np.where(ragged, self._equal, chunk), np.where(ragged, past, inside)

    def _at(self, chunk: Ints, inside: Ints) -> Places:
        """The samples number ``inside`` of chunks ``chunk``; both [n]."""
        whole = chunk < self._whole
        place = (chunk - self._whole) * self.chunk + inside  # among the left-overs of all shards and further copies
        left = np.minimum(place, self._left - 1)
        shard = np.where(
            whole,
            np.searchsorted(self._whole_end, chunk, side="right"),
            np.searchsorted(self._left_end, left, side="right"),
        )
        kept = np.where(
            whole,
            (chunk - self._whole_before[shard]) * self.chunk + inside,
            self._left_start[shard] + left - self._left_before[shard],
        )
        sample = self._number(self._kept_start[shard] + kept)
        found = Places(shard, sample - self._first[shard], sample, chunk, inside, np.zeros_like(sample))
        if self.repeated and len(rows := np.flatnonzero(~whole & (place >= self._left))):
            found[rows] = self._copy(place[rows] - self._left, chunk[rows], inside[rows])
        return found

    def _copy(self, place: Ints, chunk: Ints, inside: Ints) -> Places:
        """The further copies at ``place`` [n] of their row, which are read with those chunks."""
        sample, copy = self._copies.at(place)
        shard = np.searchsorted(self._first, sample, side="right") - 1
        return Places(shard, sample - self._first[shard], sample, chunk, inside, copy)

    def _number(self, kept: Ints) -> Ints:
        """The numbers in the whole set of the samples that are number ``kept``, [n], among the kept ones."""
        if not len(self._gaps):
            return kept
        return kept + np.searchsorted(self._gaps, kept.astype(self._gaps.dtype), side="right")

    def members(self, chunk: int) -> Places:
        """All samples of chunk number ``chunk``, in order: of one shard, but for left-overs of several."""
        size = self._ragged if chunk == self._equal else self.chunk
        return self._at(np.full(size, chunk), np.arange(size))

    def substitute(self, step: int, slots: Ints, attempt: int | Ints) -> Places:
        """What stands in for unusable samples: any image of an epoch, drawn by place and ``attempt`` alone.

        So a bad image costs itself: no other place shifts, and every world size takes the same substitute.
        """
        draw = uniform(derive_key(self.seed, _SUBSTITUTE, step, slots), attempt)
        return self.places(np.minimum((draw * self.total).astype(np.int64), self.total - 1))

    def places(self, numbers: Ints) -> Places:
        """Where the images stand that are number ``numbers``, [n], of an epoch: the samples that are not excluded, then
        the further copies."""
        kept = np.minimum(numbers, self.kept - 1)
        shard = np.searchsorted(self._kept_start, kept, side="right") - 1
        sample, index = self._number(kept), kept - self._kept_start[shard]
        past = index - self._left_start[shard]  # place among the shard's left-overs
        number, place = np.divmod(np.where(past < 0, index, self._left_before[shard] + past), self.chunk)
        chunk = np.where(past < 0, self._whole_before[shard], self._whole) + number
        found = Places(shard, sample - self._first[shard], sample, chunk, place, np.zeros_like(sample))
        if self.repeated and len(rows := np.flatnonzero(numbers >= self.kept)):
            copy = numbers[rows] - self.kept
            number, place = np.divmod(self._left + copy, self.chunk)
            found[rows] = self._copy(copy, self._whole + number, place)
        return found
