"""``seer-ingest dedup`` over a shard set of very many samples: time, memory and disk.

    python benchmarks/dedup.py --samples 10000000 [--distance 4] [--memory 3] [--tmp /scratch]

The set is of sidecars alone, which is all that the search reads: random digests and perceptual hashes. One in twenty
repeats an earlier sample's bytes, one in twenty an earlier hash but for 1 to ``--distance`` bits, and one in a hundred
has no hash. The bits of a DCT hash are nearly even and independent over natural images, but for the first.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import numpy as np
import pyarrow as pa

from seer_pipe.shards import SIDECAR_SCHEMA, put_sidecar, write_manifest
from seer_pipe.store import FolderStore

SHARD = 100_000  # samples
LEFT_OUT = ("source", "offset", "length", "crc32c", "width", "height")  # columns that dedup does not read


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--distance", type=int, default=4)
    parser.add_argument("--memory", type=float, default=3.0, help="GiB, as dedup has it")
    parser.add_argument("--tmp", type=Path, help="where the set and the temporary files go")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="benchmark-", dir=arguments.tmp) as folder:
        root, scratch = Path(folder, "set"), Path(folder, "scratch")
        scratch.mkdir()
        made = fill(root, arguments.samples, max(1, arguments.distance))
        command = [str(Path(sys.executable).with_name("seer-ingest")), "dedup", str(root), "--json"]
        settings = ["--distance", str(arguments.distance), "--memory", str(arguments.memory)]
        environment = os.environ | {"TMPDIR": str(scratch)}
        started = time.perf_counter()
        child = subprocess.Popen([*command, *settings], env=environment, stdout=subprocess.PIPE, text=True)
        disk = Disk(scratch)
        assert child.stdout is not None
        said = child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - started
    if status:
        raise SystemExit(f"dedup failed: {os.waitstatus_to_exitcode(status)}")
    found = json.loads(said)
    cpu = usage.ru_utime + usage.ru_stime
    print(f"{arguments.samples} samples: {made['same']} made alike, {found['same']} found; ", end="")
    print(f"{made['near']} made near, {found['near']} found")
    print(f"{seconds:.0f} s, {cpu:.0f} s CPU, peak {usage.ru_maxrss / (1 << 20):.2f} GiB, ", end="")
    print(f"{disk.peak / 1e9:.1f} GB of disk")


def fill(root: Path, samples: int, distance: int) -> dict[str, int]:
    """Make the set; how many samples repeat an earlier one."""
    store, draw = FolderStore(root), np.random.default_rng(0)
    schema = pa.schema([field for field in SIDECAR_SCHEMA if field.name not in LEFT_OUT])
    made, paths = {"same": 0, "near": 0}, []
    for shard, first in enumerate(range(0, samples, SHARD)):
        count = min(SHARD, samples - first)
        digests = draw.integers(0, 256, (count, 32), np.uint8)
        hashes = draw.integers(0, 1 << 63, count, np.uint64) | np.uint64(1 << 63)
        kind, earlier = draw.random(count), draw.integers(0, max(1, count // 2), count)
        flat = draw.random(count) < 0.01
        copies = np.arange(count) >= count // 2  # of the first half, so that none is a copy of a copy
        same = copies & (kind < 0.1)
        near = copies & (kind >= 0.9) & ~flat & ~flat[earlier]
        digests[same], hashes[same] = digests[earlier[same]], hashes[earlier[same]]
        flipped = np.zeros(near.sum(), np.uint64)
        for _ in range(distance):
            flipped |= np.uint64(1) << draw.integers(0, 63, len(flipped), np.uint64)
        hashes[near] = hashes[earlier[near]] ^ flipped
        made["same"] += int(same.sum())
        made["near"] += int(near.sum())
        text = np.frombuffer(digests.tobytes().hex().encode(), "S64").astype(str)
        keys = [f"{shard:05d}-{place:06d}" for place in range(count)]
        table = pa.table([keys, text, pa.array(hashes, mask=flat)], schema=schema)
        paths.append(f"{shard:05d}.tar")
        put_sidecar(store, f"{shard:05d}.parquet", table, 0, f"{shard:064x}")
    write_manifest(store, paths)
    return made


class Disk(threading.Thread):
    """Watches how much stands in a folder."""

    def __init__(self, folder: Path) -> None:
        super().__init__(daemon=True)
        self.peak = 0  # bytes
        self._folder = folder
        self.start()

    def run(self) -> None:
        while True:
            size = 0
            for path in self._folder.rglob("*"):
                try:
                    size += path.stat().st_blocks * 512
                except OSError:  # gone meanwhile
                    continue
            self.peak = max(self.peak, size)
            time.sleep(0.5)


if __name__ == "__main__":
    main()
