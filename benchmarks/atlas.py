"""What the atlas of a large pile costs: `seer-pipe atlas` over an invented set and invented embeddings.

    python benchmarks/atlas.py FOLDER [--images 10000000 --clusters 16000 --width 64 --kmeans]

Every shard of the set is one small real tar of a few pictures under another name, and every sample one of them. FOLDER
then takes 4 bytes an image and feature, and must be removed by hand.
"""

import argparse
import os
import resource
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seer_pipe.quickstart.draw import KINDS, picture
from seer_pipe.shards import ShardSet, ShardWriter, put_sidecar, sidecar_path, write_manifest
from seer_pipe.store import open_store

SHARD, GROUP = 10_000, 4096  # images of a shard, of a row group: those of seer-ingest and seer-pipe embed


def make_set(root: Path, images: int) -> None:
    store, paths = open_store(root), [f"{n:05d}.tar" for n in range(images // SHARD)]
    writer = ShardWriter(store, paths[0])
    for number, kind in enumerate(sorted(KINDS)):
        file = root.parent / "picture.jpg"
        picture(kind, number).save(file)
        writer.add(
            f"{number:06d}", file.read_bytes(), source=f"http://{kind}.example/{number}.jpg", width=256, height=256
        )
    writer.commit()
    write_manifest(store, paths[:1])
    few = ShardSet.open(root).sidecar(0)
    many = few.take(np.arange(SHARD) % len(few))
    for number, path in enumerate(paths):
        if number:
            os.link(root / paths[0], root / path)
        hashes = pa.array(np.random.default_rng(number).integers(1, 1 << 62, SHARD, dtype=np.uint64))
        table = many.set_column(many.schema.get_field_index("phash"), "phash", hashes)
        put_sidecar(store, sidecar_path(path), table, (root / path).stat().st_size, "0")
    write_manifest(store, paths)


def make_embeddings(file: Path, images: int, clusters: int, width: int) -> None:
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((clusters, width), np.float32)
    schema = pa.schema([("key", pa.string()), ("shard", pa.string()), ("index", pa.int32()), ("cluster", pa.int32()),
                        ("confidence", pa.float32()), ("feature", pa.list_(pa.float32(), width))])  # fmt: skip
    with pq.ParquetWriter(file, schema, compression="none") as writer:
        for start in range(0, images, GROUP):
            row = np.arange(start, min(images, start + GROUP))
            cluster = (clusters * rng.random(len(row)) ** 2).astype(np.int32)  # some are large, most are small
            feature = centres[cluster] + rng.standard_normal((len(row), width), np.float32)
            writer.write_table(pa.table([
                [f"{n:09d}" for n in row.tolist()], [f"{n // SHARD:05d}.tar" for n in row.tolist()],
                pa.array((row % SHARD).astype(np.int32)), pa.array(cluster), pa.array(np.ones(len(row), np.float32)),
                pa.FixedSizeListArray.from_arrays(pa.array(feature.reshape(-1)), width),
            ], schema=schema))  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--clusters", type=int, default=16_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--kmeans", action="store_true", help="find as many clusters instead of taking those named")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True)
    make_set(asked.folder / "set", asked.images)
    make_embeddings(asked.folder / "embeddings.parquet", asked.images, asked.clusters, asked.width)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "seer_pipe", "atlas", asked.folder, "--out", asked.folder / "atlas",
         "--data", asked.folder / "set", "--embeddings", asked.folder / "embeddings.parquet",
         *(["--clusters", str(asked.clusters)] if asked.kmeans else [])],
        check=True,
    )  # fmt: skip
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    files = [file for file in (asked.folder / "atlas").rglob("*") if file.is_file()]
    data, pictures = (sum(f.stat().st_size for f in files if f.suffix == s) / 1e6 for s in (".js", ".jpg"))
    print(f"CPU {seconds:.0f} s, peak memory {used.ru_maxrss / 1e6:.2f} GB; data.js {data:.1f} MB, "
          f"{len(files)} files with {pictures:.0f} MB of pictures")  # fmt: skip


if __name__ == "__main__":
    main()
