"""Runs as jobs, watched and disturbed from outside."""

import contextlib
import json
import os
import re
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from seer_pipe import config as settings
from seer_pipe.launch.status import status
from seer_pipe.train.telemetry import read_metrics
from tests.command import seer_pipe
from tests.train.helpers import small

PATIENCE = 240.0
STEPS = 40
COMMAND = [sys.executable, "-m", "seer_pipe"]


def recipe(folder: Path, pictures: Path) -> Path:
    """Many more steps than a test waits for: on a busy machine a run of a few is over before it can be disturbed."""
    config = small(pictures, train={"images": 8 * STEPS, "checkpoint_every": 5})
    settings.save(config, settings.derive(config, 34), folder / "recipe.yaml")
    return folder / "recipe.yaml"


def launched(*arguments: object) -> str:
    """Launch; the job's name."""
    answer = seer_pipe(*arguments, "--json")
    assert answer.returncode == 0, answer.stderr
    return str(json.loads(answer.stdout)["job"])


def told(run: Path) -> dict[str, Any]:
    return status([run])[0]


def until(run: Path, *states: str, steps: int = 0) -> dict[str, Any]:
    """Wait for a state, and for so many steps; what status says then."""
    deadline = time.monotonic() + PATIENCE
    while True:
        row = told(run)
        if row["state"] in states and len(read_metrics(run)) >= steps:
            return row
        assert row["state"] not in ("failed", "died"), f"{row}\n{printed(run)}"
        assert time.monotonic() < deadline, f"{row}\n{printed(run)}"
        time.sleep(0.05)


def printed(run: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((run / "jobs").glob("*log*")))


def ranks(run: Path) -> list[int]:
    """The processes of the last start, by rank, as its preflight told."""
    found = re.findall(r"^rank (\d+)  \S+  process (\d+)", printed(run), re.MULTILINE)
    return [int(process) for _, process in sorted(dict(found).items())]


def frozen(run: Path, steps: int = 4, after: Sequence[int] = ()) -> list[int]:
    """Its ranks, made to stand still after some steps, so that what comes next comes in the middle of the run.

    ``after``: those of the start before. Until the next one has logged its own, theirs are still what stands there.
    """
    deadline = time.monotonic() + PATIENCE
    while len(read_metrics(run)) < steps or not (processes := ranks(run)) or {*processes} & {*after}:
        assert time.monotonic() < deadline, f"{told(run)}\n{printed(run)}"
        time.sleep(0.02)
    for process in processes:
        os.kill(process, signal.SIGSTOP)
    return processes


def thaw(processes: list[int]) -> None:
    for process in processes:
        with contextlib.suppress(ProcessLookupError):
            os.kill(process, signal.SIGCONT)


def weights(run: Path) -> dict[str, torch.Tensor]:
    folder = sorted((run / "checkpoints").iterdir())[-1]
    return {f"{path.name}/{name}": tensor for path in folder.glob("*.safetensors")
            for name, tensor in load_file(path).items()}  # fmt: skip


def assert_same_run(one: Path, other: Path) -> None:
    """The same weights, bit for bit, and every step told once."""
    first, second = weights(one), weights(other)
    assert first.keys() == second.keys()
    assert not [name for name in first if not torch.equal(first[name], second[name])]
    assert [row["loss"] for row in read_metrics(one)] == [row["loss"] for row in read_metrics(other)]
