"""Where the result of an evaluation goes: beside what was evaluated."""

from __future__ import annotations

import csv
import io
import json
import sys
from pathlib import Path
from typing import Any

from seer_pipe.evaluate.labels import Labelled
from seer_pipe.evaluate.subject import Subject
from seer_pipe.store import READ_ONLY, FolderStore

FOLDER = "evaluation"


def keep(path: Path, name: str, result: dict[str, Any], subject: Subject, untrained: bool) -> dict[str, Any]:
    """Store the result as evaluation/NAME-IMAGES.json in the run's or export's folder, and return it.

    Where that cannot be written to, as an archive or another person's run, a line on stderr says so.
    """
    result = {"evaluation": name, **result, "images_seen": subject.images, "untrained": untrained}
    _put(path, f"{_name(name, subject, untrained)}.json", json.dumps(result, indent=1))
    return result


def keep_rows(path: Path, name: str, learnt: Labelled, subject: Subject, untrained: bool) -> str:
    """Store which images were learnt from beside the result, and return the file's name.

    It is a CSV file as --labels takes it (key,label), or --data where the images are files (file,label).
    """
    head, names = learnt.pictures.names(learnt.numbers)
    text = io.StringIO()
    rows = csv.writer(text, lineterminator="\n")
    rows.writerow((head, "label"))
    rows.writerows(zip(names, (learnt.classes[label] for label in learnt.labels), strict=True))
    file = f"{_name(name, subject, untrained)}.csv"
    _put(path, file, text.getvalue())
    return file


def _name(name: str, subject: Subject, untrained: bool) -> str:
    return f"{FOLDER}/{name}{'-untrained' if untrained else ''}-{subject.images}"


def _put(path: Path, file: str, text: str) -> None:
    try:
        FolderStore(path).put(file, text.encode())
    except OSError as error:
        if error.errno not in READ_ONLY:
            raise
        print(f"{path / file}: {error.strerror}: the result is printed, and not kept", file=sys.stderr)


def kept(path: Path) -> dict[str, dict[str, Any]]:
    """The results stored with a run or an export, by the names of their files."""
    return {file.stem: json.loads(file.read_text()) for file in sorted((path / FOLDER).glob("*.json"))}
