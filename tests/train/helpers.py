"""A shard set of drawn pictures, a run small enough for tests, and what a run must have in common with another."""

import io
import os
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from seer_pipe import config as settings
from seer_pipe.errors import UserError
from seer_pipe.quickstart.draw import KINDS, picture
from seer_pipe.shards import ShardWriter, write_manifest
from seer_pipe.store import open_store
from seer_pipe.train.checkpoint import Checkpoints
from seer_pipe.train.committed import store_of
from seer_pipe.train.loop import train
from seer_pipe.train.telemetry import read_metrics
from tests.distributed import processes


def make_pictures(root: Path | str, shards: list[int]) -> Path:
    """Shards of so many drawn JPEGs each, in a folder or a bucket."""
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
    return Path(root)


def spoil_pictures(root: Path, count: int) -> None:
    """Damage the first pictures of the last shard, so that they are replaced wherever they stand."""
    rows = pq.read_table(root / "00003.parquet").to_pylist()
    with (root / "00003.tar").open("r+b") as tar:
        for row in rows[:count]:
            tar.seek(row["offset"] + row["length"] // 2)
            tar.write(b"damage")


def spoiled_pictures(root: Path) -> Path:
    """Four shards, one of them empty, and two pictures damaged, so that there is a quarantine to be kept."""
    make_pictures(root, [13, 0, 1, 20])
    spoil_pictures(root, 2)
    return root


def small(pictures: Path | str, **sections: dict[str, Any]) -> settings.Config:
    """A run of a few seconds; ``sections`` change single settings, or the objective by its name."""
    tree: dict[str, Any] = {
        "name": "small",
        "data": {"path": str(pictures)},
        "views": {"crops": [{"count": 2, "size": 24, "scale": [0.3, 1]},
                            {"count": 2, "size": 16, "scale": [0.1, 0.3]}]},
        "model": {"name": "regnety_200mf"},
        "objective": {"name": "swav", "head": {"hidden": [32], "dim": 16}, "prototypes": 12, "queue": 16,
                      "queue_start_images": 16, "freeze_images": 16},
        "optimizer": {"lr": 1.0, "warmup_images": 16},
        "train": {"batch": 8, "images": 96, "threads": 1, "device": "cpu", "log_every": 1, "checkpoint_every": 3},
    }  # fmt: skip
    for section, changes in sections.items():
        tree[section] = changes if section == "objective" and "name" in changes else tree.get(section, {}) | changes
    return settings.parse(tree, "test")


def weights(run: Path) -> dict[str, torch.Tensor]:
    """All that the newest checkpoint holds."""
    checkpoints = Checkpoints(store_of(run))
    newest = checkpoints.open(checkpoints.steps()[-1])
    return {
        f"{part}/{name}": tensor
        for part in ("network", "optimizer", "objective")
        for name, tensor in newest.whole(part).items()
    }


def assert_same_weights(first: Path, second: Path) -> None:
    one, other = weights(first), weights(second)
    assert one.keys() == other.keys()
    different = [name for name in one if not torch.equal(one[name], other[name])]
    assert not different


def losses(run: Path) -> dict[int, float]:
    rows = read_metrics(run)
    assert len({row["step"] for row in rows}) == len(rows)
    return {int(row["step"]): row["loss"] for row in rows}


def on_the_board(run: Path) -> list[tuple[int, float]]:
    """What TensorBoard shows of the loss."""
    board = EventAccumulator(str(run / "tensorboard"), {"scalars": 0})
    board.Reload()
    return [(event.step, event.value) for event in board.Scalars("loss")]


def assert_same_run(one: Path, other: Path) -> None:
    """The same weights, bit for bit, and everything told once: metrics, TensorBoard, quarantine."""
    assert_same_weights(one, other)
    assert losses(one) == losses(other)
    assert list(losses(one)) == sorted(losses(one)) == [step for step, _ in on_the_board(one)]
    assert on_the_board(one) == on_the_board(other)
    assert pq.read_table(one / "quarantine.parquet").equals(pq.read_table(other / "quarantine.parquet"))


Prepare = Callable[[int], None]


class Ranks:
    """The processes of one start of a run, to be killed; ``lines`` is what the first says, as it says it.

    ``prepare(rank)`` runs in each before it trains.
    """

    def __init__(self, config: settings.Config, run: Path, world: int = 1, prepare: Prepare | None = None) -> None:
        self._run = run
        run.parent.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self._heard, tell = processes.Pipe(duplex=False)
        self.processes = [
            processes.Process(target=_train, args=(config, run, rank, world, port, prepare, tell), daemon=True)
            for rank in range(world)
        ]
        for process in self.processes:
            process.start()
        tell.close()

    @property
    def lines(self) -> Iterator[str]:
        while True:
            try:
                yield self._heard.recv()
            except EOFError:
                return

    def until(self, start: str) -> None:
        """Until the first rank says a line that starts so."""
        said = []
        for line in self.lines:
            said.append(line)
            if line.startswith(start):
                return
        errors = map(self.errors, range(len(self.processes)))
        raise AssertionError("\n".join([f"ended before {start!r}", *said, *errors]))

    def errors(self, rank: int) -> str:
        return _errors(self._run, rank).read_text()

    def ends(self) -> list[int | None]:
        """The exit codes; all have ended."""
        for _ in self.lines:
            pass
        for process in self.processes:
            process.join(200)
        codes = [process.exitcode for process in self.processes]
        self.close()
        assert None not in codes, codes
        return codes

    def kill(self) -> None:
        """kill -9 of all ranks at once."""
        for process in self.processes:
            process.kill()
        self.ends()

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()


def _errors(run: Path, rank: int) -> Path:
    return run.parent / f"{run.name}.{rank}.err"


def _train(
    config: settings.Config, run: Path, rank: int, world: int, port: int, prepare: Prepare | None, tell: Any
) -> None:
    os.dup2(os.open(_errors(run, rank), os.O_WRONLY | os.O_CREAT | os.O_TRUNC), 2)
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    if prepare is not None:
        prepare(rank)
    try:
        finished = train(config, run, say=tell.send if rank == 0 else lambda _: None)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    sys.exit(0 if finished else 130)
