"""The classes that each sample of a set has, in a folder that ``seer-pipe vocabulary`` writes.

    vocabulary.parquet   a row a class, by its number: the tag, and how many images have it
    starts.npy           int64 [samples + 1]: where the classes of each sample begin, by its number in the set
    classes.npy          int32: the classes of all samples, one after another, rising within each
    about.json           of which set, how many samples and classes, the most of one sample, a hash of it all

The two arrays are mapped: a rank reads what its images need, and the page cache keeps what is asked for.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from seer_pipe.errors import UserError

Ints = npt.NDArray[np.int64]

ABOUT, STARTS, CLASSES, VOCABULARY = "about.json", "starts.npy", "classes.npy", "vocabulary.parquet"


class Targets:
    """Those of a set with the fingerprint ``shards``, of so many ``samples``. UserError where ``folder`` is of another
    set, or has not as many ``classes``, or more than ``most`` of one sample."""

    def __init__(self, folder: str, samples: int, shards: str, classes: int, most: int | None = None) -> None:
        where = f"objective.vocabulary: {folder}"
        try:
            about: dict[str, Any] = json.loads(Path(folder, ABOUT).read_text())
            self._starts = np.load(Path(folder, STARTS), mmap_mode="r")
            self._classes = np.load(Path(folder, CLASSES), mmap_mode="r")
        except FileNotFoundError:
            raise UserError(f"{where}: no vocabulary here (no {ABOUT}); seer-pipe vocabulary makes one") from None
        except (OSError, ValueError) as error:
            raise UserError(f"{where}: not readable: {error}") from None
        if (about["samples"], about["shards"]) != (samples, shards):
            raise UserError(f"{where}: was not made for the run's shard set as it is now; make it again")
        if about["classes"] != classes:
            raise UserError(f"{where}: has {about['classes']} classes: set objective.classes={about['classes']}")
        if most is not None and about["most"] > most:
            raise UserError(f"{where}: has images of {about['most']} classes; objective weak_labels takes several")
        self.digest = int(about["sha256"][:15], 16)  # of 60 bits, as a checkpoint's int64 holds them

    def of(self, samples: Ints) -> tuple[Ints, Ints]:
        """Of ``samples`` [n]: each class that one has, [m], and whose row it is, [m], 0 to n-1 rising."""
        starts = np.asarray(self._starts[samples])
        counts = np.asarray(self._starts[samples + 1]) - starts
        rows = np.repeat(np.arange(len(samples)), counts)
        within = np.arange(len(rows)) - np.repeat(np.cumsum(counts) - counts, counts)
        return rows, np.asarray(self._classes[starts[rows] + within], np.int64)
