"""Where the result of an evaluation goes: beside what was evaluated."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from seer_pipe.evaluate.subject import Subject
from seer_pipe.store import READ_ONLY, FolderStore

FOLDER = "evaluation"


def keep(path: Path, name: str, result: dict[str, Any], subject: Subject, untrained: bool) -> dict[str, Any]:
    """Store the result as evaluation/NAME-IMAGES.json in the run's or export's folder, and return it.

    Where that cannot be written to, as an archive or another person's run, a line on stderr says so.
    """
    result = {"evaluation": name, **result, "images_seen": subject.images, "untrained": untrained}
    file = f"{FOLDER}/{name}{'-untrained' if untrained else ''}-{subject.images}.json"
    try:
        FolderStore(path).put(file, json.dumps(result, indent=1).encode())
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        print(f"{path / file}: {error.strerror}: the result is printed, and not kept", file=sys.stderr)
    return result


def kept(path: Path) -> dict[str, dict[str, Any]]:
    """The results stored with a run or an export, by the names of their files."""
    return {file.stem: json.loads(file.read_text()) for file in sorted((path / FOLDER).glob("*.json"))}
