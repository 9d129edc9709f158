"""Ctrl-C: the first ends a run cleanly, the second at once, and the same command then does what is left."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.ingest.helpers import COMMAND, files, rejected, stored, until
from tests.ingest.test_run import fill
from tests.ingest.web import Web

ROOT = Path(__file__).parents[2]
#: The command, with decoders that hang where they are told to.
HANGING = """
import functools
from ingest import cli, workers
from tests.ingest.hostile import hostile
workers.DecoderPool = functools.partial(workers.DecoderPool, processor=hostile)
cli.main()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_the_first_stops_cleanly(tmp_path: Path, server: Web, number: signal.Signals) -> None:
    urls = [server.url("/jpeg/1"), server.url("/held/2"), server.url("/jpeg/3")]
    (tmp_path / "list.txt").write_text("\n".join(urls))
    out = tmp_path / "out"
    arguments = ["urls", tmp_path / "list.txt", "--out", out, "--unit", "1", "--allow-network", "127.0.0.0/8"]
    command = [*COMMAND, *map(str, arguments)]
    server.released.clear()
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        until(lambda: (out / "00000.parquet").exists() and (out / "00002.parquet").exists())
        process.send_signal(number)
        _, said = process.communicate(timeout=60)
    server.released.set()
    assert process.returncode == 128 + number
    assert said.splitlines()[-1].startswith("stopped; ")
    done = {"00000.parquet", "00000.tar", "rejected/00000.parquet"}
    done |= {name.replace("00000", "00002") for name in done}
    assert set(files(out)) == done | {"ingest.json", "inputs.parquet"}
    subprocess.run(command, check=True, capture_output=True, timeout=60)
    assert [row["source"] for row in stored(out)] == urls


@pytest.mark.slow
def test_the_second_ends_at_once(tmp_path: Path) -> None:
    """While a decoder hangs, which a clean stop waits for. What is left behind is cleared by the next run."""
    folder, out, told = fill(tmp_path / "in", 3), tmp_path / "out", tmp_path / "told"
    (folder / "0001.jpg").write_bytes(b"hang and tell " + os.fsencode(told))
    arguments = ["folder", str(folder), "--out", str(out), "--unit", "1"]
    with subprocess.Popen(
        [sys.executable, "-c", HANGING, *arguments], stderr=subprocess.PIPE, text=True,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
    ) as process:  # fmt: skip
        until(lambda: told.exists() and told.read_text() != "")
        process.send_signal(signal.SIGINT)
        assert process.stderr is not None
        assert any(line.startswith("stopping: ") for line in process.stderr)
        assert process.poll() is None
        process.send_signal(signal.SIGINT)
        assert process.wait(30) == 128 + signal.SIGINT
        assert process.stderr.read() == ""
    until(lambda: not Path("/proc", told.read_text()).exists())
    assert not (out / "manifest.parquet").exists()
    subprocess.run([*COMMAND, *arguments], check=True, capture_output=True, timeout=60)
    assert rejected(out) == {"0001.jpg": "not_an_image"}
    assert len(stored(out)) == 2
    assert not [name for name in files(out) if ".tmp-" in name]
