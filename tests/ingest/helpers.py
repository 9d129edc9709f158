"""What several ingest tests need: commands in a process of their own, and what a shard set holds."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

COMMAND = [sys.executable, "-c", "from ingest.cli import main; main()"]


def seer_ingest(*arguments: object) -> "subprocess.CompletedProcess[str]":
    return subprocess.run([*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=120)


def files(root: Path) -> dict[str, bytes]:
    """All that stands in a folder."""
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def stored(root: Path) -> list[dict[str, Any]]:
    return [row for path in sorted(root.glob("0*.parquet")) for row in pq.read_table(path).to_pylist()]


def rejected(root: Path) -> dict[str, str]:
    """Reason by source."""
    rows = [row for path in sorted(root.glob("rejected/*")) for row in pq.read_table(path).to_pylist()]
    return {row["source"]: row["reason"] for row in rows}
