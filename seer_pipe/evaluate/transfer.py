"""One backbone on many data sets, in one table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from seer_pipe.errors import UserError
from seer_pipe.evaluate.classifiers import fit
from seer_pipe.evaluate.knn import knn_accuracy
from seer_pipe.evaluate.labels import left_out, open_labelled
from seer_pipe.evaluate.linear import features_of_parts
from seer_pipe.evaluate.stages import ALL, keep_stages
from seer_pipe.evaluate.workbench import on_bench
from seer_pipe.section import Section, read_file, validate


class DataSet(Section):
    """An entry of the list."""

    name: str
    data: str
    labels: str | None = None
    test: str | None = None


def read_list(file: Path) -> list[DataSet]:
    """The data sets that a YAML file lists. UserError where it is something else, or two have one name."""
    entries = read_file(file)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        raise UserError(f"{file}: not a list of entries with name, data and, at will, labels, test")
    sets = [validate(DataSet, entry, f"{file}: entry {nth}") for nth, entry in enumerate(entries, 1)]
    names = [entry.name for entry in sets]
    if not sets or len(set(names)) < len(names):
        raise UserError(f"{file}: needs at least one data set, and a name of its own for each")
    return sets


def evaluate_transfer(
    path: Path, file: Path, *, seed: int, untrained: bool, stage: str | None = None
) -> dict[str, Any] | None:
    """kNN and linear accuracy on every data set of the list, at one stage; None but on the first rank."""
    if stage == ALL:
        raise UserError(
            "--stage all: transfer compares the data sets at one stage; eval knn and eval linear compare the stages"
        )
    sets = read_list(file)
    opened = [open_labelled(entry.data, entry.labels) for entry in sets]  # errors come before any work
    rows: dict[str, Any] = {}
    with on_bench(path, opened[0].pictures, untrained, clips=True) as bench:
        mean, grid = bench.readings(stage, grid=False), bench.readings(stage, grid=True)
        for entry, learnt in zip(sets, opened, strict=True):
            parts = features_of_parts(bench, learnt, entry.labels, entry.test, seed, [*mean, *grid])
            if parts is None:
                continue
            ((near, x), y, left), ((test_near, test_x), test_y, test_left) = parts
            rows[entry.name] = {
                "knn": knn_accuracy(test_near, test_y, near, y),
                "linear": fit(x, y, len(learnt.classes), seed=seed).accuracy(test_x, test_y),
                "images": len(test_x),
                "trained_on": len(x),
                "left_out": left_out(left, test_left),
                "classes": len(learnt.classes),
            }
        if not bench.world.is_first:
            return None
        result = {"sets": rows, "list": str(file), "seed": seed}
        return keep_stages(path, "transfer", stage, [(grid[0], result)], bench.subject, untrained, lambda _: 0.0)
