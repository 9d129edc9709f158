"""One iteration of k-means over rows that a file holds: time, memory.

    python benchmarks/kmeans.py FILE [--rows 10000000 --width 128 --clusters 16000 --threads 2]

FILE is made where it is not there (rows x width x 4 bytes), and must be removed by hand.
"""

import argparse
import time
from pathlib import Path

import numpy as np
import torch
from marks import resident  # beside this file

from seer_pipe.distributed.kmeans import kmeans


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--width", type=int, default=128)
    parser.add_argument("--clusters", type=int, default=16_000)
    parser.add_argument("--threads", type=int, default=2)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    if not asked.file.exists():
        with asked.file.open("wb") as out:
            for start in range(0, asked.rows, 1 << 16):
                draws = np.random.default_rng(start)
                out.write(draws.standard_normal((min(1 << 16, asked.rows - start), asked.width), np.float32).tobytes())
    mapped = np.memmap(asked.file, np.float32, "r+", shape=(asked.rows, asked.width))
    began, used = time.monotonic(), time.process_time()
    found = kmeans(torch.from_numpy(mapped), asked.clusters, seed=0, iterations=0)
    assert int(found.sizes.sum()) == asked.rows
    most, own, of_file = (resident(which) / 1e9 for which in ("VmHWM", "RssAnon", "RssFile"))
    print(f"{time.monotonic() - began:.0f} s, {time.process_time() - used:.0f} s of CPU; peak resident {most:.2f} GB, "
          f"of its own {own:.2f} GB, of the file {of_file:.2f} GB at the end")  # fmt: skip


if __name__ == "__main__":
    main()
