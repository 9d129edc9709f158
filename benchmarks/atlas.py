"""What the atlas of a large pile costs: `seer-pipe atlas` over an invented set and invented embeddings, and its page in
headless Chromium (pip install '.[browser]' and Debian's chromium, chromium-driver; left out where they are not there).

    python benchmarks/atlas.py FOLDER [--images 10000000 --clusters 16000 --width 64 --pictures 100000 --kmeans]

Every shard of the set is one real tar of SHARD small drawn pictures under another name. FOLDER takes 4 bytes an image
and feature, and must be removed by hand.
"""

import argparse
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import simplejpeg

from seer_pipe.quickstart.draw import KINDS, picture
from seer_pipe.shards import ShardSet, ShardWriter, put_sidecar, sidecar_path, write_manifest
from seer_pipe.store import open_store

SHARD, GROUP = 10_000, 4096  # images of a shard, of a row group: those of seer-ingest and seer-pipe embed


def drawn(count: int, side: int = 64) -> Iterator[bytes]:
    """So many small JPEGs: few drawn pictures, their colours mixed anew each time."""
    rng, kinds = np.random.default_rng(0), sorted(KINDS)
    few = [np.asarray(picture(kinds[n % len(kinds)], n).resize((side, side)), np.float32) for n in range(160)]
    for number in range(count):
        mixed = few[number % len(few)] @ rng.dirichlet(np.full(3, 0.5), 3).astype(np.float32).T
        yield simplejpeg.encode_jpeg(np.ascontiguousarray(mixed.clip(0, 255), np.uint8), 80)


def make_set(root: Path, images: int) -> None:
    store, paths = open_store(root), [f"{n:05d}.tar" for n in range(images // SHARD)]
    writer, kinds = ShardWriter(store, paths[0]), sorted(KINDS)
    for number, content in enumerate(drawn(SHARD)):
        source = f"http://{kinds[number % len(kinds)]}.example/{number}.jpg"
        writer.add(f"{number:06d}", content, source=source, width=64, height=64)
    writer.commit()
    write_manifest(store, paths[:1])
    many = ShardSet.open(root).sidecar(0)
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


SETTLED = """const done = arguments[0];
const look = () => tiles.size && [...tiles.values()].every(one => one.canvas)
  ? requestAnimationFrame(() => done(performance.now())) : setTimeout(look, 5);
look()"""
PAN = """const done = arguments[0], began = performance.now();
let left = 120;
const step = () => {
  move(left % 60 < 30 ? 5 : -5, 3);
  left-- ? requestAnimationFrame(step) : done(120000 / (performance.now() - began));
};
step()"""
RENDERER = """const gl = document.createElement('canvas').getContext('webgl');
const about = gl?.getExtension('WEBGL_debug_renderer_info');
return `${navigator.userAgent.match(/Chrome[^ ]*/)[0]}, canvas in software, WebGL: ` +
  (about ? gl.getParameter(about.UNMASKED_RENDERER_WEBGL) : 'none')"""


def browse(page: Path) -> tuple[str, float, dict[str, float]]:
    """What draws, milliseconds until the first pictures are there, and frames per second while panning at zooms."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1280,900",
    ):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(shutil.which("chromedriver")))
    driver.set_script_timeout(120)
    driver.set_window_size(1280, 900)
    try:
        driver.get(page.as_uri())
        opened = driver.execute_async_script(SETTLED)
        frames = {}
        for name, factor in (("whole", 1), ("4 times", 4), ("16 times", 4)):
            driver.execute_script(f"zoom({factor})")
            driver.execute_async_script(SETTLED)
            frames[name] = driver.execute_async_script(PAN)
        return driver.execute_script(RENDERER), opened, frames
    finally:
        driver.quit()


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--images", type=int, default=10_000_000)
    parser.add_argument("--clusters", type=int, default=16_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--pictures", type=int, default=100_000)
    parser.add_argument("--kmeans", action="store_true", help="find as many clusters instead of taking those named")
    asked = parser.parse_args()
    asked.folder.mkdir(parents=True)
    make_set(asked.folder / "set", asked.images)
    make_embeddings(asked.folder / "embeddings.parquet", asked.images, asked.clusters, asked.width)
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(
        [sys.executable, "-m", "seer_pipe", "atlas", asked.folder, "--out", asked.folder / "atlas",
         "--data", asked.folder / "set", "--embeddings", asked.folder / "embeddings.parquet",
         "--pictures", str(asked.pictures),
         *(["--clusters", str(asked.clusters)] if asked.kmeans else [])],
        check=True,
    )  # fmt: skip
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    seconds = used.ru_utime + used.ru_stime - before.ru_utime - before.ru_stime
    out = asked.folder / "atlas"
    files = [file for file in out.rglob("*") if file.is_file()]
    opening = sum((out / name).stat().st_size for name in ("index.html", "data.js", "points.js")) / 1e6
    pictures = sum(file.stat().st_size for file in files if file.suffix == ".jpg") / 1e6
    print(f"CPU {seconds:.0f} s, peak memory {used.ru_maxrss / 1e6:.2f} GB; {opening:.1f} MB to open the page, "
          f"{len(files)} files with {pictures:.0f} MB of pictures")  # fmt: skip
    if find_spec("selenium") and shutil.which("chromium") and shutil.which("chromedriver"):
        renderer, opened, frames = browse(out / "index.html")
        rates = ", ".join(f"{rate:.0f} at {name}" for name, rate in frames.items())
        print(f"{renderer}: pictures after {opened / 1000:.2f} s, frames/s while panning: {rates}")


if __name__ == "__main__":
    main()
