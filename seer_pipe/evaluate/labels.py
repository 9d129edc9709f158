"""Images with labels: what every evaluation with classes begins from.

a shard set             labels: a column of its sidecars, a CSV file, or ``folder`` (an image's folder)
a folder class/image    the folder is the class
a CSV file              columns file and label; files relative to the CSV file
"""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from seer_pipe.data.order import Ints
from seer_pipe.errors import UserError
from seer_pipe.evaluate.pictures import SUFFIXES, FilePictures, Pictures, ShardPictures
from seer_pipe.shards import MANIFEST, ShardSet
from seer_pipe.store import open_store

FOLDER = "folder"


@dataclass(frozen=True)
class Labelled:
    """Images with labels: the ``numbers`` of ``pictures`` that are meant, and what class each picture is of."""

    pictures: Pictures
    numbers: Ints
    label_of: Ints  # [len(pictures)], a place in classes, or -1
    classes: list[str]

    def __len__(self) -> int:
        return len(self.numbers)

    @property
    def labels(self) -> Ints:
        """Those of the chosen images."""
        return self.label_of[self.numbers]

    def take(self, rows: npt.NDArray[Any]) -> Labelled:
        """Some of them: row numbers, or a mask."""
        return replace(self, numbers=self.numbers[rows])


def open_labelled(data: str, labels: str | None = None, classes: list[str] | None = None) -> Labelled:
    """The labelled images of ``data``, as the head of this file says.

    ``classes``: those of the images that are learnt from, where these are to be classified. Then a class that is not
    among them is a UserError; so is a set without labels, and one of fewer than two classes.
    """
    pictures, named = _read(data, labels, is_test=classes is not None)
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
    numbers = np.flatnonzero(label_of >= 0)
    if isinstance(pictures, ShardPictures):
        numbers = np.intersect1d(numbers, pictures.usable)
    return Labelled(pictures, numbers, label_of, order)


def _read(data: str, labels: str | None, is_test: bool) -> tuple[Pictures, list[str]]:
    """The images, and the class of each, empty where it has none."""
    if data.endswith(".csv"):
        return _csv_of_files(Path(data))
    if "://" in data or open_store(data).size(MANIFEST) is not None:
        shards = ShardSet.open(data)
        if labels is None:
            raise UserError(f"{data}: labels missing: give --labels a column of its sidecars, a CSV file, or 'folder'")
        return ShardPictures(shards), _labels_of(shards, labels)
    if labels not in (None, FOLDER) and not is_test:  # a test in a folder may go with a shard set that is learnt from
        raise UserError(f"{data}: no shard set; the labels of a folder are its folders' names, so leave --labels out")
    return _class_folders(Path(data))


def _labels_of(shards: ShardSet, labels: str) -> list[str]:
    if labels == FOLDER:
        return [PurePosixPath(source).parent.name for source in _column(shards, "source")]
    columns = shards.sidecar(0).column_names if shards.paths else []
    if labels in columns:
        return _column(shards, labels)
    if not labels.endswith(".csv"):
        raise UserError(f"{labels!r}: no column of {shards.store.url} (it has {', '.join(columns)}), and no CSV file")
    rows = _csv_rows(Path(labels), ["source", "label"], ["key", "label"])
    named = {row[0]: row[1] for row in rows[1]}
    return [named.get(value, "") for value in _column(shards, rows[0][0])]


def _column(shards: ShardSet, name: str) -> list[str]:
    values: Iterable[pa.ChunkedArray] = (shards.sidecar(i, [name])[name] for i in range(len(shards.paths)))
    return ["" if value is None else str(value) for column in values for value in column.to_pylist()]


def _class_folders(folder: Path) -> tuple[Pictures, list[str]]:
    if not folder.is_dir():
        raise UserError(f"{folder}: no such shard set, folder or CSV file")
    found = sorted(file for file in folder.glob("*/**/*") if file.suffix.lower() in SUFFIXES)
    if not found:
        raise UserError(f"{folder}: neither a shard set nor a folder of class/image")
    return FilePictures(found, str(folder)), [file.relative_to(folder).parts[0] for file in found]


def _csv_of_files(file: Path) -> tuple[Pictures, list[str]]:
    _, rows = _csv_rows(file, ["file", "label"])
    files = [file.parent / name for name, _ in rows]
    absent = next((path for path in files if not path.is_file()), None)
    if absent:
        raise UserError(f"{file}: {absent}: no such file")
    return FilePictures(files, str(file)), [label for _, label in rows]


def _csv_rows(file: Path, *headers: list[str]) -> tuple[list[str], list[tuple[str, ...]]]:
    """The first of ``headers`` whose columns the file has, and these columns' rows."""
    try:
        with file.open(newline="", encoding="utf-8-sig") as lines:
            rows = list(csv.DictReader(lines, strict=True))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}") from None
    except (csv.Error, UnicodeDecodeError):
        rows = []
    for header in headers:
        if rows and set(header) <= rows[0].keys():
            return header, [tuple(row[name] or "" for name in header) for row in rows]
    wanted = " or ".join(",".join(header) for header in headers)
    raise UserError(f"{file}: not a CSV file with the columns {wanted}")
