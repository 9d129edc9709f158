"""A run spread over a real Ray, started here: the same set as one process makes, also after a worker was killed."""

import json
import os
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from tests.ingest.helpers import COMMAND, files, seer_ingest

pytest.importorskip("ray", reason="no Ray here: pip install 'seer-pipe[ray]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder, random = tmp_path_factory.mktemp("pictures"), np.random.default_rng(0)
    for number in range(120):
        Image.fromarray(random.integers(0, 256, (400, 400, 3), np.uint8)).save(folder / f"{number}.png")
    return folder


def at_work(out: Path) -> dict[str, int]:
    """The processes that gave a sign of life, by share."""
    return {sign["share"]: sign["pid"] for sign in signs(out) if sign["state"] == "running"}


def signs(out: Path) -> Iterator[dict[str, object]]:
    for path in (out / "progress").glob("*-of-*.json"):
        try:
            yield json.loads(path.read_text())
        except FileNotFoundError:  # done since
            continue


def test_a_killed_worker_is_replaced_and_units_are_done_once(pictures: Path, tmp_path: Path) -> None:
    arguments = ["folder", pictures, "--unit", 10, "--workers", 1]
    one = seer_ingest(*arguments, "--out", tmp_path / "one")
    assert one.returncode == 0, one.stderr
    out = tmp_path / "many"
    command = [*COMMAND, *map(str, [*arguments, "--out", out, "--ray", "local", "--tasks", 3])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        deadline = time.monotonic() + 300
        while not (found := at_work(out)):
            assert process.poll() is None, process.communicate()
            assert time.monotonic() < deadline
            time.sleep(0.01)
        share, worker = next(iter(found.items()))
        os.kill(worker, signal.SIGKILL)
        while at_work(out).get(share, worker) == worker and process.poll() is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        said, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors
    assert "120 inputs: 120 stored, 0 rejected" in said
    assert files(out) == files(tmp_path / "one")


@pytest.mark.parametrize("address", ["127.0.0.1:9", "ray://127.0.0.1:9", "auto", "nonsense"])
def test_without_a_cluster_it_is_one_line(pictures: Path, tmp_path: Path, address: str) -> None:
    run = seer_ingest("folder", pictures, "--out", tmp_path / "out", "--ray", address)
    assert run.returncode == 2, run.stderr
    assert run.stderr.splitlines()[-1].startswith(f"error: --ray {address}: no Ray cluster answers: ")
