"""What the features of a run were worth as it went: accuracies by images seen, of each evaluation that is kept."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from seer_pipe.evaluate.results import kept
from seer_pipe.report.charts import Chart, Mark, Point

#: What must be equal for two results to be of the same evaluation; all else in a result is found, or chosen by it.
SAME = ("k", "temperature", "size", "epochs", "draws", "context", "radius", "data", "queries", "test", "list")
#: What one of them measures, where it is no accuracy.
OTHERS = {"j_and_f": " J&F"}
PROBE = "kNN probe"


def results(run: Path, rows: Iterable[Mapping[str, float]]) -> dict[str, list[Point]]:
    """Accuracies by what was evaluated how, as ``knn (k 20, temperature 0.07, data val)``: points (images, share).

    The untrained trunk's is at 0 images.
    """
    found: dict[str, list[Point]] = {}
    if probed := [(row["images"], row["knn"]) for row in rows if "knn" in row]:
        found[PROBE] = probed
    for result in kept(run).values():
        how = ", ".join(f"{key} {result[key]}" for key in SAME if key in result)
        seen = 0 if result.get("untrained") else result.get("images_seen", 0)
        for what, value in _accuracies(result):
            found.setdefault(f"{result.get('evaluation')}{what} ({how})", []).append((seen, value))
    return {name: sorted(points) for name, points in found.items()}


def _accuracies(result: Mapping[str, Any]) -> list[tuple[str, float]]:
    """What of a result is an accuracy or alike, and what it is of; of several data sets, those of each."""
    whole = [(OTHERS.get(key, key.removeprefix("accuracy").replace("_", " ")), value)
             for key, value in result.items() if key.startswith("accuracy") or key in OTHERS]  # fmt: skip
    sets = [(f" {name}, {key}", value) for name, row in result.get("sets", {}).items()
            for key, value in row.items() if key in ("knn", "linear")]  # fmt: skip
    return whole + sets


def evaluation_charts(
    found: Mapping[str, Sequence[Point]], rows: Sequence[Mapping[str, float]], marks: Sequence[Mark]
) -> list[Chart]:
    """One chart per evaluation, by steps, with the untrained trunk's accuracy as a line: what training has to beat."""
    images, steps = [0.0, *(row["images"] for row in rows)], [0.0, *(row["step"] for row in rows)]
    charts = []
    for name, points in found.items():
        after = [(float(np.interp(x, images, steps)), y) for x, y in points if x > 0]
        floor = {"untrained": points[0][1]} if points[0][0] == 0 else {}
        about = "Of the network as it is trained." if name == PROBE else f"{name}."
        about += " It must rise above the untrained trunk's." if floor else ""
        if after:
            charts.append(Chart(name.split(" (")[0], about, {"accuracy": after}, floor, percent=True, marks=marks))
    return charts
