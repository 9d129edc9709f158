"""What a shard set holds, from its manifest and a sample of its sidecars: quick for any size of set."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seer_pipe.shards import EXCLUDED, ShardSet

SHARDS = 64  # sidecars read of a large set
CAPTIONS_SHOWN = 12
EXAMPLES = 4  # sources shown of each reason


@dataclass
class Ingested:
    """Numbers of a shard set; all but those of the manifest are of ``sampled_shards`` shards, spread evenly."""

    url: str
    samples: int
    shards: int
    bytes: int
    sampled_shards: int
    sampled: int  # images in them
    short_side: dict[int, int] = field(default_factory=dict)  # percentile: pixels
    megapixels: float = 0.0  # mean of an image
    formats: dict[str, int] = field(default_factory=dict)
    domains: dict[str, int] = field(default_factory=dict)  # or the folders, where sources are paths
    captioned: int = 0  # sampled images with text beside them
    captions: list[str] = field(default_factory=list)  # some of it
    same_look: int = 0  # sampled images whose perceptual hash an earlier one has
    excluded: int | None = None  # rows of excluded.parquet, whole set
    rejected: dict[str, int] = field(default_factory=dict)
    examples: dict[str, list[str]] = field(default_factory=dict)


def ingested(shards: ShardSet, most: int = SHARDS) -> Ingested:
    """Read what ``Ingested`` holds; at most ``most`` sidecars and as many tables of rejected inputs."""
    chosen = sample_numbers(len(shards.paths), most)
    about = Ingested(
        shards.store.url, len(shards), len(shards.paths), int(shards.bytes.sum()), len(chosen),
        int(shards.counts[chosen].sum()),
    )  # fmt: skip
    formats: Counter[str] = Counter()
    domains: Counter[str] = Counter()
    sides, pixels, hashes = [], 0, []
    for shard in chosen:
        table = shards.sidecar(shard)
        width, height = (table[name].to_numpy().astype(np.int64) for name in ("width", "height"))
        sides.append(np.minimum(width, height))
        pixels += int((width * height).sum())
        hashes.append(table["phash"].drop_null().to_numpy())
        domains.update(map(domain, table["source"].to_pylist()))
        captions = [caption for caption in shards.captions(shard) if caption]
        about.captioned += len(captions)
        about.captions += captions[: max(0, CAPTIONS_SHOWN - len(about.captions))]
        if "format" in table.column_names:
            formats.update(table["format"].to_pylist())
    if about.sampled:
        short = np.concatenate(sides)
        about.short_side = {p: int(np.percentile(short, p, method="lower")) for p in (0, 5, 50, 95, 100)}
        about.megapixels = pixels / about.sampled / 1e6
    known = np.concatenate(hashes) if hashes else np.zeros(0, np.uint64)
    about.same_look = len(known) - len(np.unique(known))
    about.formats, about.domains = dict(formats.most_common()), dict(domains.most_common(20))
    if shards.store.size(EXCLUDED) is not None:
        about.excluded = pq.read_metadata(pa.BufferReader(shards.store.get(EXCLUDED))).num_rows
    _rejected(shards, about, most)
    return about


def _rejected(shards: ShardSet, about: Ingested, most: int) -> None:
    counts: Counter[str] = Counter()
    examples: defaultdict[str, list[str]] = defaultdict(list)
    for number in sample_numbers(len(shards.paths), most):
        table = shards.rejected(number)
        if table is None:
            continue
        counts.update(table["reason"].to_pylist())
        for row in table.to_pylist():
            if len(examples[row["reason"]]) < EXAMPLES:
                examples[row["reason"]].append(row["source"])
    about.rejected, about.examples = dict(counts.most_common()), dict(examples)


def sample_numbers(count: int, most: int) -> list[int]:
    """At most ``most`` of ``count`` numbers, evenly."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).astype(int)).tolist() if count else []


def domain(source: str) -> str:
    """The host of a URL, or the first folder of a path."""
    if "://" in source:
        return urlsplit(source).hostname or source
    return source.lstrip("/").split("/")[0] if "/" in source else "(no folder)"


def evenly(rows: Sequence[Any], most: int) -> list[Any]:
    """At most ``most`` of ``rows``, the first and the last among them."""
    return [rows[number] for number in sample_numbers(len(rows), most)]
