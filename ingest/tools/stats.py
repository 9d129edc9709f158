"""What a shard set holds, in numbers."""

from __future__ import annotations

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow.compute as pc

from ingest.sources import CLIPS, NUMBER
from ingest.tools.rejected import rejected_tables
from seer_pipe.shards import ShardSet

PERCENTILES = (0, 5, 50, 95, 100)
LONGEST = 1 << 16  # pixels; sides are counted one by one up to here, so percentiles are exact in bounded memory


@dataclass(frozen=True)
class Stats:
    url: str
    shards: int
    samples: int
    excluded: int  # of the samples, those excluded from training
    bytes: int  # of the tars
    image_bytes: int  # of the images or clips in them
    megapixels: float
    short_side: dict[int, int]  # percentile: pixels
    long_side: dict[int, int]
    formats: dict[str, int]  # what the images came as, most frequent first; empty where that is not known
    reencoded: int
    unhashed: int  # without a perceptual hash
    rejected: dict[str, int]  # reason: inputs, most frequent first
    media: str  # image, video, audio or pair
    sources: int  # that the samples were made of
    seconds: float  # of all clips
    with_sound: int  # clips


def stats(root: str | os.PathLike[str]) -> Stats:
    """Read the sidecars and the rejected of the shard set at ``root``. UserError where there is none, and where
    its list of excluded samples is of another set."""
    shards = ShardSet.open(root)
    short, long = np.zeros(LONGEST, np.int64), np.zeros(LONGEST, np.int64)
    formats: Counter[str] = Counter()
    image_bytes = pixels = reencoded = unhashed = sources = with_sound = 0
    seconds = 0.0
    with ThreadPoolExecutor(8) as pool:
        for table in pool.map(shards.sidecar, range(len(shards.paths))):
            width, height = (table[name].to_numpy().astype(np.int64) for name in ("width", "height"))
            short += np.bincount(np.minimum(width, height), minlength=LONGEST)
            long += np.bincount(np.maximum(width, height), minlength=LONGEST)
            pixels += int((width * height).sum())
            image_bytes += int(table["length"].to_numpy().sum())
            unhashed += table["phash"].null_count
            if "format" in table.column_names:
                formats.update(table["format"].to_pylist())
            if "reencoded" in table.column_names:
                reencoded += pc.sum(table["reencoded"]).as_py() or 0
            if shards.media == "image":
                sources += table.num_rows
            else:
                sources += pc.sum(pc.equal(table[NUMBER[shards.media]], 0)).as_py() or 0
            if shards.media in CLIPS:
                seconds += pc.sum(table["duration"]).as_py() or 0.0
                with_sound += table.num_rows - table["audio_rate"].null_count
    rejected: Counter[str] = Counter()
    for table in rejected_tables(shards):
        rejected.update(table["reason"].to_pylist())
    return Stats(
        url=shards.store.url,
        shards=len(shards.paths),
        samples=len(shards),
        excluded=len(shards.excluded),
        bytes=int(shards.bytes.sum()),
        image_bytes=image_bytes,
        megapixels=pixels / 1e6,
        short_side=percentiles(short),
        long_side=percentiles(long),
        formats=dict(formats.most_common()),
        reencoded=reencoded,
        unhashed=unhashed,
        rejected=dict(rejected.most_common()),
        media=shards.media,
        sources=sources,
        seconds=seconds,
        with_sound=with_sound,
    )


def percentiles(counts: npt.NDArray[np.int64]) -> dict[int, int]:
    """The least value that at least p % of all are not above, from how often each value occurs."""
    total = np.cumsum(counts)
    if not total[-1]:
        return {}
    return {p: int(np.searchsorted(total, max(1, np.ceil(p / 100 * total[-1])))) for p in PERCENTILES}
