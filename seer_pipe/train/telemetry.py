"""What a run logs: metrics.jsonl and the boards that follow it, quarantine.parquet.

A resume takes back what was written past its checkpoint, so that no step is logged twice and none is missing.
"""

from __future__ import annotations

import json
import math
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

import pyarrow as pa
import pyarrow.parquet as pq

from seer_pipe.config import Config
from seer_pipe.data.stream import Replaced, too_many
from seer_pipe.shards import to_parquet
from seer_pipe.store import FolderStore
from seer_pipe.train.boards import BOARDS, Board, Opening
from seer_pipe.train.events import read_rows

QUARANTINE_SCHEMA = pa.schema(
    [
        ("step", pa.int64()),
        ("slot", pa.int64()),
        ("shard", pa.string()),
        ("index", pa.int64()),
        ("reason", pa.string()),
    ]
)


#: How what every rank measures of itself is one number of the run. A step waits for the rank that waits most for data,
#: and the one that needs most memory is the first to have none left.
OVER_RANKS: dict[str, Callable[[list[float]], float]] = {
    "data_wait": max, "cpu_cores": sum, "memory_gb": max, "gpu_busy": fmean,
}  # fmt: skip


def over_ranks(found: Sequence[Mapping[str, float]]) -> dict[str, float]:
    """One row of all ranks' rows: by `OVER_RANKS` over those that have the value, else the first rank's."""
    return {
        name: joined([row[name] for row in found if name in row]) if (joined := OVER_RANKS.get(name)) else value
        for name, value in found[0].items()
    }


@dataclass
class Clock:
    """Time and images since the last logged step, and seconds of this process's threads at its beginning."""

    began: float
    waited: float = 0.0
    images: int = 0
    worked: float = field(default_factory=time.process_time)

    def rates(self) -> dict[str, float]:
        """Images per second of all ranks, share of waiting, and cores that this process kept busy."""
        passed, worked = time.perf_counter() - self.began, time.process_time()
        rates = {
            "images_per_s": self.images / passed, "data_wait": self.waited / passed,
            "cpu_cores": (worked - self.worked) / passed,
        }  # fmt: skip
        self.began, self.waited, self.images, self.worked = time.perf_counter(), 0.0, 0, worked
        return rates


class Metrics:
    """One row per logged step; ``after`` is the last finished step, from which a resume continues."""

    def __init__(self, run: Path, after: int, config: Config) -> None:
        self._run, self._config = run, config
        self._open(after)

    def _open(self, after: int) -> None:
        path = self._run / "metrics.jsonl"
        rows = read_metrics(self._run)
        kept = [row for row in rows if row["step"] <= after]
        FolderStore(self._run).put(path.name, "".join(json.dumps(row) + "\n" for row in kept).encode())
        self._file = path.open("a", buffering=1)  # whole lines, at once
        opening = Opening(self._run, self._config, after, int(rows[-1]["step"]) if rows else 0)
        self._boards: list[Board] = [BOARDS[name](opening) for name in self._config.train.log_to]
        for row in kept:
            self._show(int(row["step"]), {name: value for name, value in row.items() if name != "step"})

    def write(self, step: int, values: Mapping[str, float]) -> None:
        values = finite(values)
        self._file.write(json.dumps({"step": step, **values}) + "\n")
        self._show(step, values)

    def _show(self, step: int, values: Mapping[str, float]) -> None:
        for board in self._boards:
            if step > board.last_step:
                board.write(step, values)
                board.last_step = step

    def flush(self) -> None:
        """All that was written is on the disk: a checkpoint vouches for it."""
        os.fsync(self._file.fileno())
        for board in self._boards:
            board.flush()

    def rewind(self, after: int) -> None:
        """Take back the rows past step ``after``."""
        self.close()
        self._open(after)

    def close(self) -> None:
        self._file.close()
        for board in self._boards:
            board.close()


def finite(values: Mapping[str, float]) -> dict[str, float]:
    """Without those that are not finite, as in a step that was skipped: JSON has no word for them."""
    return {name: value for name, value in values.items() if math.isfinite(value)}


def read_metrics(run: Path) -> list[dict[str, float]]:
    """The rows of a run's metrics."""
    return read_rows(run / "metrics.jsonl")


class Quarantine:
    """The images that had to be replaced, kept in RUN/quarantine.parquet."""

    def __init__(self, run: Path, after: int) -> None:
        self._store = FolderStore(run)
        path = run / "quarantine.parquet"
        rows = pq.read_table(path).to_pylist() if path.exists() else []
        self._rows = [Replaced(**row) for row in rows if row["step"] < after]  # steps that are finished
        self._written = -1

    def __len__(self) -> int:
        return len(self._rows)

    def add(self, replaced: Iterable[Replaced]) -> None:
        self._rows.extend(replaced)

    def too_many(self, limit: float, images: int) -> str | None:
        """What is wrong where more than ``limit`` of the ``images`` so far were replaced; then they are written."""
        if not too_many(len(self), images, limit):
            return None
        self.write()
        return (f"{len(self)} of {images} images had to be replaced, more than data.max_bad_fraction {limit}; "
                f"most from {self.worst_shards()}; see quarantine.parquet")  # fmt: skip

    def worst_shards(self) -> str:
        counts: dict[str, int] = {}
        for row in self._rows:
            counts[row.shard] = counts.get(row.shard, 0) + 1
        worst = sorted(counts.items(), key=lambda item: -item[1])[:3]
        return ", ".join(f"{shard} ({count})" for shard, count in worst)

    def write(self) -> None:
        if self._written != len(self._rows):
            rows = sorted(self._rows, key=lambda row: (row.step, row.slot))
            table = pa.Table.from_pylist([vars(row) for row in rows], QUARANTINE_SCHEMA)
            self._store.put("quarantine.parquet", to_parquet(table))
            self._written = len(self._rows)
