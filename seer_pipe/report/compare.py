"""Runs side by side: what they are, what they cost, what their features are worth, whether they are healthy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from seer_pipe import config as settings
from seer_pipe.errors import UserError
from seer_pipe.report.charts import Chart, Point, all_panels, number
from seer_pipe.report.evaluated import results
from seer_pipe.report.health import Overall, overall, verdicts
from seer_pipe.report.history import starts
from seer_pipe.report.page import asset, environment, write_page
from seer_pipe.report.recipe import differing
from seer_pipe.train.events import read_events
from seer_pipe.train.heartbeat import read_heartbeat
from seer_pipe.train.telemetry import read_metrics
from seer_pipe.units import duration


@dataclass(frozen=True)
class Side:
    """One of the runs."""

    name: str
    run: Path
    config: settings.Config
    derived: Mapping[str, Any]
    rows: Sequence[Mapping[str, float]]  # of its metrics
    wall: Sequence[float]  # hours of training up to each row, without what was taken again after a kill
    hours: Sequence[float]  # the same of all processes together
    health: Overall
    findings: Sequence[str]  # what does not look healthy
    results: Mapping[str, Sequence[Point]]  # of each evaluation: accuracy by images seen; untrained at 0

    def last(self, metric: str) -> float | None:
        return next((row[metric] for row in reversed(self.rows) if metric in row), None)

    @property
    def speed(self) -> float | None:
        """Images per second in the median logged step."""
        rates = [row["images_per_s"] for row in self.rows if "images_per_s" in row]
        return float(np.median(rates)) if rates else None

    def hours_at(self, images: float) -> float:
        seen = [0.0, *(row["images"] for row in self.rows)]
        return float(np.interp(images, seen, [0.0, *self.hours]))


def read_sides(places: Sequence[Path]) -> list[Side]:
    """The runs in these folders, or in folders of runs, in their order. UserError where one is neither."""
    runs = list(dict.fromkeys(run for place in places for run in _runs(place)))
    short = [run.absolute().name for run in runs]
    names = short if len(set(short)) == len(short) else [str(run) for run in runs]
    return [_side(name, run) for name, run in zip(names, runs, strict=True)]


def _runs(place: Path) -> list[Path]:
    if (place / "config.yaml").is_file():
        return [place]
    inside = sorted(file.parent for file in place.glob("*/config.yaml"))
    if not inside:
        raise UserError(f"{place}: not a run's folder (no config.yaml), and none is in it")
    return inside


def _side(name: str, run: Path) -> Side:
    config, rows, events = settings.load(run / "config.yaml"), read_metrics(run), read_events(run)
    derived = yaml.safe_load((run / "config.yaml").read_text()).get("derived", {})
    beat = read_heartbeat(run)
    found = starts(events, beat)
    processes = [(start.last, start.world) for start in found]
    wall, hours, seen = [0.0], [0.0], 0.0
    for row in rows:
        passed = (row["images"] - seen) / row["images_per_s"] / 3600 if row.get("images_per_s") else 0.0
        world = next((world for last, world in processes if row["step"] <= last), 1)
        wall, hours, seen = [*wall, wall[-1] + passed], [*hours, hours[-1] + passed * world], row["images"]
    judged = verdicts(rows, events, derived, config.objective.signs())
    health = overall(rows, found[-1] if found else None, beat, derived, judged)
    wrong = [text for good, text in judged if not good]
    return Side(name, run, config, derived, rows, wall[1:], hours[1:], health, wrong, results(run, rows))


def summary(side: Side) -> dict[str, Any]:
    """A run in numbers; None where nothing was written of it. ``hours``: of training; ``process_hours``: times the
    processes, GPU hours where there are GPUs. Accuracies are shares, the newest of each evaluation, and the untrained
    trunk's."""
    return {
        "run": str(side.run),
        "objective": side.config.objective.name,
        "trunk": side.config.model.name,
        "batch": side.config.train.batch,
        "images": int(side.last("images") or 0),
        "images_planned": side.derived.get("images"),
        "hours": side.wall[-1] if side.wall else 0.0,
        "process_hours": side.hours[-1] if side.hours else 0.0,
        "images_per_s": side.speed,
        "memory_gb": side.last("memory_gb"),
        "accuracy": {name: points[-1][1] for name, points in side.results.items() if points[-1][0] > 0},
        "untrained": {name: points[0][1] for name, points in side.results.items() if points[0][0] == 0},
        "look": list(side.findings),
    }


def table(sides: Sequence[Side]) -> tuple[list[str], list[list[str]], list[str]]:
    """Heads, one row per run, and notes that say what the numbered evaluations are."""
    evaluations = list(dict.fromkeys(name for side in sides for name in side.results))
    heads = ["run", "objective", "trunk", "batch", "images", "took", "images/s", "GB"]
    heads += [f"{name.split(' (')[0]} [{n}]" for n, name in enumerate(evaluations, 1)]
    rows = []
    for side in sides:
        told = summary(side)
        planned = f" of {told['images_planned']:,}" if told["images_planned"] else ""
        cells = [side.name, told["objective"], told["trunk"], f"{told['batch']:,}", f"{told['images']:,}{planned}",
                 duration(3600 * told["process_hours"]), _some(told["images_per_s"]),
                 _some(told["memory_gb"])]  # fmt: skip
        for name in evaluations:
            after, before = told["accuracy"].get(name), told["untrained"].get(name)
            cells.append(_share(after) + ("" if before is None else f" (untrained {_share(before)})"))
        rows.append(cells)
    notes = [f"[{n}] {name}" for n, name in enumerate(evaluations, 1)]
    return heads, rows, notes


def _some(value: float | None) -> str:
    return "-" if value is None else number(value)


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def write_comparison(sides: Sequence[Side], out: Path) -> Path:
    """Write the page into the folder ``out``; its path."""
    heads, rows, notes = table(sides)
    page = environment().get_template("compare.html").render(
        names=[side.name for side in sides], made=datetime.now().astimezone().isoformat(" ", "minutes"),
        heads=heads, rows=rows, notes=["took: training, of all processes together", *notes],
        accuracy=_accuracy(sides), curves=_curves(sides), differing=differing([side.config for side in sides]),
        health=[(side.name, side.health, side.findings) for side in sides],
        style=asset("style.css", "charts.css"), script=asset("charts.js"),
    )  # fmt: skip
    return write_page(page, out)


def _accuracy(sides: Sequence[Side]) -> list[Chart]:
    """Two charts per evaluation: by images, by hours. Every run is in each, so that it has one colour throughout."""
    charts = []
    for name in dict.fromkeys(name for side in sides for name in side.results):
        points = {side.name: list(side.results.get(name, ())) for side in sides}
        timed = {side.name: [(side.hours_at(x), y) for x, y in points[side.name]] for side in sides}
        what = name.split(" (")[0]
        charts.append(Chart(f"{what} by images", f"{name}.", points, percent=True, across="images"))
        charts.append(Chart(f"{what} by hours", "Of all processes together.", timed, percent=True, across="hours"))
    return charts


def _curves(sides: Sequence[Side]) -> list[Chart]:
    """A chart of every metric that any of the runs has, by images. Losses are comparable where the objective is."""
    everything = [row for side in sides for row in side.rows]
    own = [panel for side in sides for panel in side.config.objective.panels]
    chances = {side.derived.get("chance_loss") for side in sides}
    chance = chances.pop() if len(chances) == 1 else None
    charts: dict[str, Chart] = {}
    for panel in all_panels(everything, own):
        for metric, label in panel.metrics.items():
            series = {side.name: [(row["images"], row[metric]) for row in side.rows if metric in row] for side in sides}
            if any(series.values()):
                title = panel.title if len(panel.metrics) == 1 else f"{panel.title}: {label}"
                lines = {"chance": chance} if panel.chance and chance is not None else {}
                charts.setdefault(metric, Chart(title, panel.about if lines or not panel.chance else "", series, lines,
                                                panel.percent, "images"))  # fmt: skip
    return list(charts.values())
