"""What several ingest tests need: the command line, and what a shard set holds."""

import io
import signal
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from ingest.cli import main

COMMAND = [sys.executable, "-c", "from ingest.cli import main; main()"]


@dataclass(frozen=True)
class Result:
    returncode: int
    stdout: str
    stderr: str


def seer_ingest(*arguments: object, program: Callable[[], None] = main) -> Result:
    """Run the command here, as if it were a process of its own (which would take a second to import everything).

    ``program``: another one's main function.
    """
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    out, err, given = io.StringIO(), io.StringIO(), sys.argv
    sys.argv = ["seer-ingest", *map(str, arguments)]
    try:
        with redirect_stdout(out), redirect_stderr(err):
            program()
        code: object = 0
    except SystemExit as exit_:
        code = exit_.code
    finally:
        sys.argv = given
        for number, handler in handlers.items():
            signal.signal(number, handler)
    assert code is None or isinstance(code, int)
    return Result(code or 0, out.getvalue(), err.getvalue())


def until(condition: Callable[[], bool], patience: float = 60) -> None:
    """Wait for what another process or thread is about to do."""
    deadline = time.monotonic() + patience
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def files(root: Path) -> dict[str, bytes]:
    """All that stands in a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def stored(root: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(root.glob("0*.parquet")) for row in pq.read_table(path).to_pylist()]


def rejected(root: Path, column: str = "reason") -> dict[str, str]:
    """Reason, or detail, by source."""
    rows = [row for path in sorted(root.glob("rejected/*")) for row in pq.read_table(path).to_pylist()]
    return {row["source"]: row[column] for row in rows}
