"""What balancing a set is worth: two runs that see as many images, one of the raw set and one of the curated.

    python benchmarks/curate.py FOLDER [--images 19200] [--frequent clouds]

The set is drawn: of one kind ten times as many pictures as of each of the seven others, and of every tenth picture
three near copies (another size, quality and edge). By default the pictures of that kind are much alike, as are those of
which a pile of the web has too many. The raw run's own features curate it. Both runs are judged by the kNN accuracy on
a set of its own, of as many pictures of every kind. FOLDER is continued where it stopped.
"""

import argparse
import io
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from seer_pipe.quickstart.draw import KINDS, picture
from seer_pipe.shards import ShardWriter, write_manifest
from seer_pipe.store import open_store

EACH, TIMES, COPIES, EVERY = 60, 10, 3, 10  # pictures of a kind, as many more of one, copies of each tenth one


def near_copy(image: Image.Image, number: int) -> Image.Image:
    """The same picture without up to 3 % of each edge, at 0.8 to 1.2 times its size."""
    rng = np.random.default_rng([number, 1])
    left, top, right, bottom = rng.uniform(0, 0.03, 4)
    box = (left * image.width, top * image.height, (1 - right) * image.width, (1 - bottom) * image.height)
    scale = rng.uniform(0.8, 1.2)
    size = (round(scale * image.width), round(scale * image.height))
    return image.resize(size, Image.Resampling.BICUBIC, box=box)


def make_set(root: Path, each: dict[str, int], first: int, copies: int) -> None:
    """One shard; the sources are KIND/NUMBER.jpg, and KIND/NUMBER-COPY.jpg."""
    store, drawn = open_store(root), []
    for kind, count in each.items():
        for number in range(first, first + count):
            image = picture(kind, number)
            drawn.append((f"{kind}/{number}", image, 90))
            if number % EVERY == 0:
                drawn += [(f"{kind}/{number}-{c}", near_copy(image, 10 * number + c), 60 + 10 * c)
                          for c in range(copies)]  # fmt: skip
    writer = ShardWriter(store, "00000.tar")
    for place in np.random.default_rng(0).permutation(len(drawn)).tolist():
        source, image, quality = drawn[place]
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=quality)
        writer.add(source.replace("/", "-"), buffer.getvalue(), source=f"{source}.jpg", width=image.width,
                   height=image.height)  # fmt: skip
    writer.commit()
    write_manifest(store, ["00000.tar"])


def command(program: str, *words: object) -> str:
    whole = [str(Path(sys.executable).with_name(program)), *map(str, words)]
    return subprocess.run(whole, check=True, stdout=subprocess.PIPE, text=True).stdout


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=19_200, help="that each run sees")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--frequent", choices=sorted(KINDS), default="clouds", help="the kind of which there is most")
    asked = parser.parse_args()
    raw, curated, held_out, lists = (asked.folder / name for name in ("raw", "curated", "held-out", "curation"))
    kinds = sorted(KINDS)
    if not held_out.exists():
        make_set(raw, {kind: EACH * (TIMES if kind == asked.frequent else 1) for kind in kinds}, 0, COPIES)
        make_set(held_out, dict.fromkeys(kinds, 100), 100_000, 0)

    def trained(data: Path, seed: int) -> Path:
        out = asked.folder / f"run-{data.name}-{seed}"
        command("seer-pipe", "train", "quickstart", f"data.path={data}", f"seed={seed}", "train.epochs=null",
                f"train.images={asked.images}", "--out", out)  # fmt: skip
        return out

    def accuracy(run: Path, *how: str) -> float:
        judge = ["--data", held_out, "--labels", "folder", "--json", *how]
        return float(json.loads(command("seer-pipe", "eval", "knn", run, *judge))["accuracy"])

    first = trained(raw, 0)
    print(f"kNN accuracy, untrained: {accuracy(first, '--untrained'):.3f}")
    if not curated.exists():
        command("seer-pipe", "curate", first, "--out", lists, "--labels", "folder")
        shutil.copytree(raw, curated)
        command("seer-ingest", "exclude", curated, "--keys", lists / "exclude.parquet")
    for name in ("keep", "exclude"):
        keys = pq.read_table(lists / f"{name}.parquet")["key"].to_pylist()
        kind = Counter(key.split("-")[0] for key in keys)
        print(f"{name}: {dict(sorted(kind.items()))}, copies {sum(key.count('-') == 2 for key in keys)}")
    for seed in range(asked.seeds):
        found = {data.name: round(accuracy(trained(data, seed)), 3) for data in (raw, curated)}
        print(f"kNN accuracy, seed {seed}: {found}", flush=True)


if __name__ == "__main__":
    main()
