"""Vocabularies for tests of objectives, without pictures."""

import json
import tempfile
from functools import cache
from pathlib import Path

import numpy as np

from seer_pipe.objectives.targets import ABOUT, CLASSES, STARTS


def write_arrays(folder: Path, each: list[list[int]], classes: int) -> str:
    """The classes of each sample of a set without a fingerprint, as `seer_pipe.objectives.targets` has them."""
    np.save(folder / STARTS, np.cumsum([0, *map(len, each)]))
    np.save(folder / CLASSES, np.array([number for some in each for number in some], np.int32))
    about = {"shards": "", "samples": len(each), "classes": classes, "most": max(map(len, each)), "sha256": "ab" * 32}
    (folder / ABOUT).write_text(json.dumps(about))
    return str(folder)


@cache
def drawn(samples: int, classes: int, most: int) -> str:
    """Of ``most`` classes a sample at most, and of some none."""
    draws = np.random.default_rng(0)
    counts = draws.integers(0, most + 1, samples).tolist()
    each = [sorted(draws.choice(classes, count, replace=False).tolist()) for count in counts]
    return write_arrays(Path(tempfile.mkdtemp(prefix="vocabulary-")), each, classes)
