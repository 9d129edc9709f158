"""Where a run keeps its checkpoints, and which of them exist.

Without torch, which takes seconds to import: this is what is asked on a login node.
"""

from __future__ import annotations

import re
from pathlib import Path

from seer_pipe import config as settings
from seer_pipe.config import Config
from seer_pipe.store import Store, open_store

MARKER = "COMMITTED.json"  # written last: a folder without it does not exist


def store_of(run: Path, config: Config | None = None) -> Store:
    """Where a run keeps its checkpoints; without ``config``, by that in its folder."""
    path = run / "config.yaml"
    if config is None and path.exists():
        config = settings.load(path)
    return open_store((config and config.train.checkpoints) or run / "checkpoints")


def committed_steps(store: Store) -> list[int]:
    """The steps of the committed checkpoints, in order."""
    found = (re.fullmatch(rf"step-(\d+)/{MARKER}", entry.path) for entry in store.list())
    return sorted(int(match[1]) for match in found if match)
