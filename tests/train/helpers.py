"""A shard set of drawn pictures and a run small enough for tests."""

import io
from pathlib import Path
from typing import Any

from seer_pipe import config as settings
from seer_pipe.quickstart.draw import KINDS, picture
from seer_pipe.shards import ShardWriter, write_manifest
from seer_pipe.store import open_store


def make_pictures(root: Path, shards: list[int]) -> Path:
    """Shards of so many drawn JPEGs each."""
    store, number, kinds = open_store(root), 0, sorted(KINDS)
    paths = [f"{shard:05d}.tar" for shard in range(len(shards))]
    for path, count in zip(paths, shards, strict=True):
        writer = ShardWriter(store, path)
        for _ in range(count):
            image = picture(kinds[number % len(kinds)], number)
            buffer = io.BytesIO()
            image.save(buffer, "JPEG")
            writer.add(f"{number:06d}", buffer.getvalue(), source=f"{kinds[number % len(kinds)]}/{number}.jpg",
                       width=image.width, height=image.height)  # fmt: skip
            number += 1
        writer.commit()
    write_manifest(store, paths)
    return root


def small(pictures: Path | str, **sections: dict[str, Any]) -> settings.Config:
    """A run of a few seconds; ``sections`` change single settings."""
    tree: dict[str, Any] = {
        "name": "small",
        "data": {"path": str(pictures)},
        "views": {"crops": [{"count": 2, "size": 24, "scale": [0.3, 1]},
                            {"count": 2, "size": 16, "scale": [0.1, 0.3]}]},
        "model": {"name": "regnety_200mf"},
        "objective": {"head": {"hidden": [32], "dim": 16}, "prototypes": 12, "queue": 16, "queue_start_images": 16,
                      "freeze_images": 16},
        "optimizer": {"lr": 1.0, "warmup_images": 16},
        "train": {"batch": 8, "images": 96, "threads": 1, "device": "cpu", "log_every": 1, "checkpoint_every": 3},
    }  # fmt: skip
    for section, changes in sections.items():
        tree[section] = tree.get(section, {}) | changes
    return settings.parse(tree, "test")
