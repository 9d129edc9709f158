"""Line charts as inline SVG, drawn here: no script, no network, and the numbers beside them as a table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape

from seer_pipe.objectives.settings import Panel
from seer_pipe.report.ingested import evenly

COLOURS = 8  # of lines, in style.css
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 200, 52, 8, 10, 26  # of the drawing, in units of about a pixel
POINTS, ROWS = 300, 24  # of a line, of its table

Point = tuple[float, float]


@dataclass(frozen=True)
class Chart:
    """``series``: name to points (x, y), x ascending. ``lines``: name to a height that is marked across the chart.
    ``across``: what x counts."""

    title: str
    about: str  # what to read off it, in a sentence
    series: dict[str, list[Point]]
    lines: dict[str, float] = field(default_factory=dict)
    percent: bool = False
    across: str = "step"

    @property
    def table(self) -> list[list[str]]:
        """A row of some places: x and the value of each series."""
        steps = evenly(sorted({x for points in self.series.values() for x, _ in points}), ROWS)
        values = [dict(points) for points in self.series.values()]
        return [[f"{x:g}", *(self._tell(column[x]) if x in column else "" for column in values)] for x in steps]

    def _tell(self, value: float) -> str:
        return f"{value:.1%}" if self.percent else f"{value:.4g}"

    def svg(self, identity: str) -> str:
        """The drawing; ``identity`` names it within the page."""
        finite = {
            name: [p for p in evenly(points, POINTS) if math.isfinite(p[1])] for name, points in self.series.items()
        }
        xs = [x for points in finite.values() for x, _ in points] or [0.0]
        ys = [y for points in finite.values() for _, y in points] or [0.0]
        ticks = nice_ticks(min([*ys, *self.lines.values()]), max([*ys, *self.lines.values()]))
        x_ticks = nice_ticks(0, max(xs), 4)
        low, high, right = ticks[0], ticks[-1], x_ticks[-1] or 1

        def place(x: float, y: float) -> str:
            across = LEFT + x / right * (WIDTH - LEFT - RIGHT)
            return f"{across:.1f} {HEIGHT - BOTTOM - (y - low) / (high - low) * (HEIGHT - TOP - BOTTOM):.1f}"

        last = ", ".join(f"{name} {self._tell(points[-1][1])}" for name, points in finite.items() if points)
        parts = [
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-labelledby="{identity}-t {identity}-d">',
            f'<title id="{identity}-t">{escape(self.title)}</title>',
            f'<desc id="{identity}-d">{escape(self.about)} Now: {escape(last)}.</desc>',
        ]
        for tick in ticks:
            y = place(0, tick).split()[1]
            label = f"{tick:.0%}" if self.percent else f"{tick:g}"
            parts.append(f'<path class="grid" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>'
                         f'<text x="{LEFT - 5}" y="{y}" dy="4" text-anchor="end">{label}</text>')  # fmt: skip
        for tick in x_ticks:
            x = place(tick, low).split()[0]
            anchor = "end" if tick == x_ticks[-1] else "middle"
            parts.append(f'<text x="{x}" y="{HEIGHT - 8}" text-anchor="{anchor}">{short(tick)}</text>')
        for name, height in self.lines.items():
            x, y = place(right, height).split()
            label = f'<text class="marked" x="{x}" y="{y}" dy="-4" text-anchor="end">{escape(name)}</text>'
            parts.append(f'<path class="mark" d="M{LEFT} {y}H{WIDTH - RIGHT}"/>{label}')
        for number, points in enumerate(finite.values()):
            path = "L".join(place(*point) for point in points)
            if path:
                kind, stay = ("dot", "h.1") if len(points) == 1 else ("line", "")
                parts.append(f'<path class="{kind} s{number % COLOURS}" d="M{path}{stay}"/>')
        return "".join([*parts, "</svg>"])


def nice_ticks(low: float, high: float, wanted: int = 4) -> list[float]:
    """Round numbers around [low, high], at least two, about ``wanted`` steps apart by 1, 2 or 5 of a power of ten."""
    # Nearer numbers would read alike; and the least of floats divide to nothing.
    span = max((high - low) or abs(high) or 1.0, 1e-8 * abs(high), 1e-300)
    power = 10.0 ** math.floor(math.log10(span / wanted))
    step = next(power * factor for factor in (1, 2, 5, 10) if span <= power * factor * wanted * (1 + 1e-9))
    first = math.floor(low / step + 1e-9)
    last = max(math.ceil(high / step - 1e-9), first + 1)
    return [float(f"{number * step:.12g}") for number in range(first, last + 1)]


def short(value: float) -> str:
    """1200000 as 1.2M."""
    for size, letter in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:g}{letter}"
    return f"{value:g}"


#: What is drawn of every run, besides its objective's own panels.
PANELS = (
    Panel("Loss", "It must leave the line of chance, where nothing is distinguished.", {"loss": "loss"}, chance=True),
    Panel("kNN accuracy", "What the features are worth, while they are trained.", {"knn": "kNN"}, percent=True),
)
MORE_PANELS = (
    Panel("Learning rate", "", {"lr": "learning rate"}),
    Panel("Gradient norm", "Jumps come before a loss that is not finite.", {"grad_norm": "norm"}),
    Panel("Throughput", "Images per second, all ranks together.", {"images_per_s": "images/s"}),
    Panel("Model FLOPs utilisation", "Share of the GPUs' peak that the training itself uses.", {"mfu": "MFU"},
          percent=True),
    Panel("Memory", "GB that the first process held at most: of its GPU, or resident.", {"memory_gb": "GB"}),
    Panel("Waiting for data", "Share of the time that training waits for the loader.", {"data_wait": "waiting"},
          percent=True),
)  # fmt: skip
NOT_DRAWN = {"loss_above_chance", "images", "step"}


def run_charts(rows: Sequence[dict[str, float]], own: Sequence[Panel] = (), chance: float | None = None) -> list[Chart]:
    """The charts of a run's metrics: those that are known, then a chart for every other one that it has.

    ``own``: the objective's panels; ``chance``: its loss of guessing, marked where a panel wants that.
    """

    def points(name: str) -> list[Point]:
        return [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]

    charts, panels = [], [*PANELS, *own, *MORE_PANELS]
    for panel in panels:
        series = {label: points(name) for name, label in panel.metrics.items() if points(name)}
        marks = {"chance": chance} if panel.chance and chance is not None else {}
        about = "" if panel.chance and chance is None else panel.about  # it explains a line that is not there
        if series:
            charts.append(Chart(panel.title, about, series, marks, panel.percent))
    drawn = {name for panel in panels for name in panel.metrics} | NOT_DRAWN
    others = sorted({name for row in rows for name in row} - drawn)
    return charts + [Chart(name.replace("_", " "), "", {name: points(name)}) for name in others if points(name)]
