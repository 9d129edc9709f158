"""A memory bank in one process: its bytes, and the CPU time of a step.

python benchmarks/bank.py [--samples 10000000 --dim 128 --dtype float16 --batch 4096 --negatives 65536 --threads 1]
"""

import argparse
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch

from seer_pipe.objectives.bank import Bank
from seer_pipe.objectives.bank_settings import BankSettings

STEPS = 20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--samples", type=int, default=10_000_000)
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--negatives", type=int, default=65_536)
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)
    bank = Bank(BankSettings(dtype=asked.dtype), asked.samples, (asked.dim,))
    draws, rows = np.random.default_rng(0), torch.randn(asked.batch, asked.dim)
    used = Counter[str]()

    @contextmanager
    def timed(name: str) -> Iterator[None]:
        began = time.process_time()
        yield
        used[name] += time.process_time() - began

    for _ in range(STEPS):
        ids = torch.from_numpy(draws.integers(0, asked.samples, asked.batch))
        with timed("plan"):
            visit = bank.visit(ids)
        with timed("read"):
            bank.read(visit)
        with timed("write"):
            bank.write(visit, rows)
        with timed("negatives"):
            bank.at(draws.integers(0, asked.samples, asked.negatives))
    print(f"{bank.rows.nbytes / 1e9:.2f} GB; CPU time a step: "
          + ", ".join(f"{name} {1000 * spent / STEPS:.1f} ms" for name, spent in used.items()))  # fmt: skip


if __name__ == "__main__":
    main()
