"""What stands where in a run's order, and how fast its data comes: the parts alone, and together."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from typing import Any

import numpy as np

from seer_pipe.config import Data, Frames, Sound
from seer_pipe.data.chunks import Samples
from seer_pipe.data.loader import Loader
from seer_pipe.data.order import slots_of
from seer_pipe.data.seen import Maker, Seen
from seer_pipe.data.sources import Mix, ShardSets, open_cache, open_data
from seer_pipe.data.stream import Stream
from seer_pipe.data.views import CropSpec
from seer_pipe.errors import UserError

ENDLESS = 1 << 40  # steps


def inspect(data: Data, batch: int, seed: int, step: int, rank: int, world: int) -> dict[str, Any]:
    """The order of a run, and the images that ``rank`` of ``world`` gets at ``step`` (from 0)."""
    if not 0 <= rank < world:
        raise UserError(f"rank {rank}: of {world} ranks the last is {world - 1}")
    shards, plan = open_data(data, batch, seed)
    slots = slots_of(rank, world, batch)
    places, epochs = plan.locate(step, slots), plan.epoch_of(step, slots)
    sets = shards.sets if isinstance(shards, ShardSets) else [shards]
    plans = plan.plans if isinstance(plan, Mix) else [plan]
    return {
        "sources": [
            {
                "path": one.store.url,
                "shards": len(one.paths),
                "images": order.total,
                "excluded": len(one) - order.kept,
                "repeated": order.repeated,
                "gigabytes": round(int(one.bytes.sum()) / 1e9, 3),
                "images_per_batch": order.batch,
                "epoch": step // order.steps_per_epoch,
                "step_of_epoch": step % order.steps_per_epoch,
                "steps_per_epoch": order.steps_per_epoch,
                "left_out_per_epoch": order.dropped,
            }
            for one, order in zip(sets, plans, strict=True)
        ],
        "batch": plan.batch,
        "lanes": plan.lanes,
        "chunk": plan.chunk,
        "fingerprint": plan.fingerprint,
        "step": step,
        "rank": rank,
        "world": world,
        "images": [
            {"slot": slot, "epoch": epoch, "sample": sample, "shard": shards.paths[shard], "index": index}
            for slot, epoch, sample, shard, index in zip(
                *(column.tolist() for column in (slots, epochs, places.sample, places.shard, places.index)), strict=True
            )
        ],
    }


def bench(
    data: Data,
    crops: Sequence[CropSpec],
    sound: Sound | None,
    frames: Frames | None,
    batch: int,
    seed: int,
    *,
    world: int,
    device: str,
    seconds: float,
) -> dict[str, Any]:
    """Images a second of rank 0 of ``world``: the stream alone, decoding and cropping alone, and both together.

    Each is measured for about ``seconds``, after a first batch that does not count. ``limit`` names the slower part.
    """
    shards, plan = open_data(data, batch, seed)
    slots = slots_of(0, world, batch)
    cache, memory = open_cache(data), int(data.memory_gb * 1e9)
    threads = max(4, data.threads)
    with closing(Stream(shards, plan, slots, threads=threads, ahead=data.ahead, memory=memory, cache=cache)) as stream:
        batches = stream.batches(0, ENDLESS)
        some = [batch for batch in itertools.islice(batches, 4) if not batch.reasons]
        read = _rate(batches, len(slots), seconds)
    if not some:
        raise UserError("the first batches hold images that cannot be read; run seer-ingest verify on the set")
    size = float(np.mean([len(image) for samples in some for image in samples.data if image is not None]))

    def make(maker: Maker, samples: Samples) -> Seen:
        return maker(samples.data, np.zeros(1, np.int64), samples.places.sample, samples.height, samples.width)

    maker = Maker(crops, sound, frames, seed=seed, device=device, threads=data.threads, max_batch=len(slots))
    with closing(maker):
        cropped = _rate((make(maker, samples) for samples in itertools.cycle(some)), len(slots), seconds)
    loader = Loader(
        shards, plan, slots, crops, sound, frames, seed=seed, device=device, threads=data.threads, ahead=data.ahead,
        memory=memory, cache=cache,
    )  # fmt: skip
    with closing(loader):
        together = _rate(loader.batches(0, ENDLESS), len(slots), seconds)
    return {
        "images_a_step": len(slots),
        "device": device,
        "stream_images_per_s": read,
        "stream_mb_per_s": read * size / 1e6,
        "crops_images_per_s": cropped,
        "together_images_per_s": together,
        "limit": "reading" if read < cropped else "decoding and cropping",
    }


def _rate(batches: Iterator[Any], images: int, seconds: float) -> float:
    next(batches)
    began, count = time.perf_counter(), 0
    while count == 0 or time.perf_counter() - began < seconds:
        next(batches)
        count += images
    return count / (time.perf_counter() - began)
