"""Images with labels: what every evaluation with classes begins from.

a shard set             labels: a column of its sidecars, a CSV file, or ``folder`` (an image's folder)
a folder class/image    the folder is the class
a CSV file              columns file and label; files relative to the CSV file

What is not used is counted: images without a label, rows without an image, rows that repeat another, images that
the set excludes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seer_pipe.data.order import Ints
from seer_pipe.errors import UserError
from seer_pipe.evaluate.pictures import SUFFIXES, FilePictures, Pictures, ShardPictures
from seer_pipe.evaluate.table import read_pairs
from seer_pipe.shards import MANIFEST, ShardSet
from seer_pipe.store import open_store

FOLDER = "folder"
#: Why something is not used, in the order of results.
LEFT_OUT = ("without_label", "rows_without_image", "repeated_rows", "excluded", "unreadable")


def left_out(*counts: Counter[str]) -> dict[str, int]:
    """Their sum as a result has it: a number for every reason, 0 among them."""
    return {reason: sum(count[reason] for count in counts) for reason in LEFT_OUT}


@dataclass(frozen=True)
class Labelled:
    """Images with labels: the ``numbers`` of ``pictures`` that are meant, and what class each picture is of."""

    pictures: Pictures
    numbers: Ints
    label_of: Ints  # [len(pictures)], a place in classes, or -1
    classes: list[str]
    left_out: Counter[str] = field(default_factory=Counter)  # how many of what stands beside them, by reason

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def labels(self) -> Ints:
        """Those of the chosen images."""
        return self.label_of[self.numbers]

    def take(self, rows: npt.NDArray[Any]) -> Labelled:
        """Some of them: row numbers, or a mask."""
        return replace(self, numbers=self.numbers[rows])


def open_labelled(
    data: str, labels: str | None = None, classes: list[str] | None = None, suffixes: Collection[str] = SUFFIXES
) -> Labelled:
    """The labelled images of ``data``, as the head of this file says; ``suffixes`` of the files of a folder.

    ``classes``: those of the images that are learnt from, where these are to be classified. Then a class that is not
    among them is a UserError; so is a set without labels, and one of fewer than two classes.
    """
    pictures, named, left = _read(data, labels, suffixes, is_test=classes is not None)
    found = sorted(set(named) - {""})
    if classes is None and len(found) < 2:
        raise UserError(
            f"{labels or data}: names {len(found)} classes for the {len(named)} images; at least 2 are needed"
        )
    strange = sorted(set(found) - set(found if classes is None else classes))
    if strange:
        raise UserError(f"{data}: class {strange[0]!r} has no image among those that are learnt from")
    if not found:
        raise UserError(f"{labels or data}: names no class for any of the {len(named)} images of {data}")
    order = found if classes is None else classes
    place = {name: number for number, name in enumerate(order)}
    label_of = np.array([place.get(name, -1) for name in named], np.int64)
    usable = pictures.usable if isinstance(pictures, ShardPictures) else np.arange(len(pictures))
    numbers = np.intersect1d(np.flatnonzero(label_of >= 0), usable)
    left["excluded"] = len(pictures) - len(usable)
    left["without_label"] += len(usable) - len(numbers)
    return Labelled(pictures, numbers, label_of, order, left)


def _read(
    data: str, labels: str | None, suffixes: Collection[str], is_test: bool
) -> tuple[Pictures, list[str], Counter[str]]:
    """The images, the class of each, empty where it has none, and what else there is, by reason."""
    if data.endswith(".csv"):
        return _csv_of_files(Path(data))
    if "://" in data or open_store(data).size(MANIFEST) is not None:
        shards = ShardSet.open(data)
        if labels is None:
            raise UserError(f"{data}: labels missing: give --labels a column of its sidecars, a CSV file, or 'folder'")
        return ShardPictures(shards), *_labels_of(shards, labels)
    if labels not in (None, FOLDER) and not is_test:  # a test in a folder may go with a shard set that is learnt from
        raise UserError(f"{data}: no shard set; the labels of a folder are its folders' names, so leave --labels out")
    return _class_folders(Path(data), suffixes)


def _labels_of(shards: ShardSet, labels: str) -> tuple[list[str], Counter[str]]:
    by = labeller(shards, labels)
    values = _column(shards, by.column)
    if not by.rows:
        return [by.label(value) for value in values], Counter()
    absent = by.rows.keys() - set(values)
    if len(absent) == len(by.rows):
        raise UserError(f"{labels}: no {by.column} of it is one of {shards.store.url}: {next(iter(by.rows))!r}, …")
    left = Counter(rows_without_image=len(absent), repeated_rows=by.repeated)
    return [by.label(value) for value in values], left


@dataclass(frozen=True)
class Labeller:
    """What ``--labels`` says of a shard set's images."""

    column: str  # of the sidecars
    label: Callable[[str], str]  # of what stands there; "" is none
    rows: dict[str, str] = field(default_factory=dict)  # of a CSV file
    repeated: int = 0  # of them


def labeller(shards: ShardSet, labels: str) -> Labeller:
    """By a column of the sidecars, a CSV file, or ``folder``. UserError where ``labels`` is none of these."""
    if labels == FOLDER:
        return Labeller("source", lambda source: PurePosixPath(source).parent.name)
    columns = shards.sidecar(0).column_names if shards.paths else []
    if labels in columns:
        return Labeller(labels, str)
    if not labels.endswith(".csv"):
        raise UserError(f"{labels!r}: no column of {shards.store.url} (it has {', '.join(columns)}), and no CSV file")
    (column, _), rows, repeated = read_pairs(Path(labels), ("source", "label"), ("key", "label"))
    return Labeller(column, lambda value: rows.get(value, ""), rows, repeated)


def _column(shards: ShardSet, name: str) -> list[str]:
    values: Iterable[pa.ChunkedArray] = (shards.sidecar(i, [name])[name] for i in range(len(shards.paths)))
    # a number that is none is no label: it is what tables have where nothing was written
    return ["" if value is None or value != value else str(value) for column in values for value in column.to_pylist()]


def _class_folders(folder: Path, suffixes: Collection[str]) -> tuple[Pictures, list[str], Counter[str]]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such shard set, folder or CSV file")
    found = sorted(file for file in folder.rglob("*") if file.suffix.lower() in suffixes)
    named = [file.relative_to(folder).parts[0] if file.parent != folder else "" for file in found]
    if not any(named):
        raise UserError(f"{folder}: neither a shard set nor a folder of class/image")
    return FilePictures(found, str(folder)), named, Counter()


def _csv_of_files(file: Path) -> tuple[Pictures, list[str], Counter[str]]:
    _, named, repeated = read_pairs(file, ("file", "label"))
    there = {name: label for name, label in named.items() if (file.parent / name).is_file()}
    if not there:
        raise UserError(f"{file}: {file.parent / next(iter(named))}: no such file, and none of the others")
    left = Counter(rows_without_image=len(named) - len(there), repeated_rows=repeated)
    return FilePictures([file.parent / name for name in there], str(file)), list(there.values()), left
