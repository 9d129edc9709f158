"""Line charts as inline SVG, drawn here: no network, and the numbers beside them as a table.

The lines stand in the units of the data, inside an SVG whose viewBox is the part that is shown: charts.js moves it to
zoom, and reads the points off the paths for its crosshair. Without a script the whole is shown.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from typing import Any

from seer_pipe.objectives.settings import Panel
from seer_pipe.report.ingested import evenly

COLOURS = 8  # of lines, in style.css
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM = 360, 200, 52, 8, 10, 26  # of the drawing, in units of about a pixel
POINTS, ROWS = 600, 24  # of a line, of its table

Point = tuple[float, float]
Mark = tuple[float, str]  # an x that is marked in all charts, and what happened there


@dataclass(frozen=True)
class Chart:
    """``series``: name to points (x, y), x ascending. ``lines``: name to a height that is marked across the chart.
    ``across``: what x counts. ``marks``: places on it, as those of restarts."""

    title: str
    about: str  # what to read off it, in a sentence
    series: Mapping[str, Sequence[Point]]
    lines: Mapping[str, float] = field(default_factory=dict)
    percent: bool = False
    across: str = "step"
    marks: Sequence[Mark] = ()

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
        finite = {name: thinned([p for p in points if math.isfinite(p[1])]) for name, points in self.series.items()}
        xs = [x for points in finite.values() for x, _ in points] or [0.0]
        ys = [y for points in finite.values() for _, y in points] or [0.0]
        ticks = nice_ticks(min([*ys, *self.lines.values()]), max([*ys, *self.lines.values()]))
        x_ticks = nice_ticks(0, max(xs), 4)
        low, high, right = ticks[0], ticks[-1], max(xs) or x_ticks[-1]
        wide, tall = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

        def down(y: float) -> str:
            return f"{TOP + (high - y) / (high - low) * tall:.1f}"

        last = ", ".join(f"{name} {self._tell(points[-1][1])}" for name, points in finite.items() if points)
        parts = [
            f'<svg class="drawing" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
            f'aria-labelledby="{identity}-t {identity}-d">'
            f'<title id="{identity}-t">{escape(self.title)}</title>'
            f'<desc id="{identity}-d">{escape(self.about)} Now: {escape(last)}.</desc><g class="axes">'
        ]
        for tick in ticks:
            label = f"{tick:.0%}" if self.percent and ticks[1] - ticks[0] >= 0.01 else f"{tick:.4g}"
            parts.append(f'<path class="grid" d="M{LEFT} {down(tick)}H{WIDTH - RIGHT}"/>'
                         f'<text x="{LEFT - 5}" y="{down(tick)}" dy="4" text-anchor="end">{label}</text>')  # fmt: skip
        for tick in (tick for tick in x_ticks if tick <= right):
            x = LEFT + tick / right * wide
            anchor = "end" if x > WIDTH - RIGHT - 12 else "middle"
            parts.append(f'<text x="{x:.1f}" y="{HEIGHT - 8}" text-anchor="{anchor}">{short(tick)}</text>')
        for name, height in self.lines.items():
            above = "-4" if (high - height) / (high - low) > 0.1 else "12"
            parts.append(f'<text class="marked" x="{WIDTH - RIGHT}" y="{down(height)}" dy="{above}" text-anchor="end">'
                         f"{escape(name)}</text>")  # fmt: skip
        parts.append(
            f'</g><svg class="plot whole" x="{LEFT}" y="{TOP}" width="{wide}" height="{tall}" '
            f'viewBox="0 {-high:.7g} {right:.10g} {high - low:.7g}" preserveAspectRatio="none">'
        )
        for x, what in self.marks:
            parts.append(
                f'<path class="happened" d="M{x:.10g} {-high:.7g}V{-low:.7g}"><title>{escape(what)}</title></path>'
            )
        for name, height in self.lines.items():
            parts.append(f'<path class="mark" d="M0 {-height:.7g}H{right:.10g}"><title>{escape(name)}</title></path>')
        for number, (name, points) in enumerate(finite.items()):
            path = "L".join(f"{x:.10g} {-y:.7g}" for x, y in points)
            if path:
                kind, stay = ("dot", "h0") if len(points) == 1 else ("line", "")
                parts.append(f'<path class="{kind} s{number % COLOURS}" d="M{path}{stay}" data-name="{escape(name)}"/>')
        return "".join([*parts, "</svg></svg>"])


def thinned(points: Sequence[Point], most: int = POINTS) -> list[Point]:
    """About ``most`` of the points, the least and the greatest of each stretch among them: no peak is lost."""
    if len(points) <= most:
        return list(points)
    size = math.ceil(len(points) / (most // 2))
    kept = {0, len(points) - 1}
    for first in range(0, len(points), size):
        stretch = range(first, min(first + size, len(points)))
        kept |= {min(stretch, key=lambda n: points[n][1]), max(stretch, key=lambda n: points[n][1])}
    return [points[number] for number in sorted(kept)]


def number(value: Any) -> str:
    """1234567 as 1,234,567, and 2.772588722239781 as 2.773."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


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
)
MORE_PANELS = (
    Panel("Learning rate", "", {"lr": "learning rate"}),
    Panel("Gradient norm", "Jumps come before a loss that is not finite.", {"grad_norm": "norm"}),
    Panel("Throughput", "Images per second, all ranks together.", {"images_per_s": "images/s"}),
    Panel("Model FLOPs utilisation", "Share of the GPUs' peak that the training itself uses.", {"mfu": "MFU"},
          percent=True),
    Panel("Waiting for data, most of all ranks", "Share of the time that a rank waits for its loader: the slowest "
          "holds up all.", {"data_wait": "waiting"}, percent=True),
    Panel("GPU utilisation, mean over ranks", "Share of the last second in which a kernel ran on the GPU.",
          {"gpu_busy": "GPU"}, percent=True),
    Panel("CPU, sum over ranks", "Cores that are kept busy, by training and decoding.", {"cpu_cores": "cores"}),
    Panel("Memory, most of all ranks", "Peak in GB: of the GPU, or resident.", {"memory_gb": "GB"}),
)  # fmt: skip
NOT_DRAWN = {"loss_above_chance", "images", "step", "knn"}


def run_charts(
    rows: Sequence[Mapping[str, float]], own: Sequence[Panel] = (), chance: float | None = None,
    marks: Sequence[Mark] = (),
) -> list[Chart]:  # fmt: skip
    """The charts of a run's metrics: those that are known, then a chart for every other one that it has.

    ``own``: the objective's panels; ``chance``: its loss of guessing, marked where a panel wants that.
    """

    def points(name: str) -> list[Point]:
        return [(row["step"], row[name]) for row in rows if isinstance(row.get(name), int | float)]

    charts = []
    for panel in all_panels(rows, own):
        series = {label: points(name) for name, label in panel.metrics.items() if points(name)}
        lines = {"chance": chance} if panel.chance and chance is not None else {}
        about = "" if panel.chance and chance is None else panel.about  # it explains a line that is not there
        if series:
            charts.append(Chart(panel.title, about, series, lines, panel.percent, marks=marks))
    return charts


def all_panels(rows: Sequence[Mapping[str, float]], own: Sequence[Panel]) -> list[Panel]:
    """Those that are known, and one for every other metric."""
    panels = [*PANELS, *own, *MORE_PANELS]
    drawn = {name for panel in panels for name in panel.metrics} | NOT_DRAWN
    others = sorted({name for row in rows for name in row} - drawn)
    return [*panels, *(Panel(name.replace("_", " "), "", {name: name}) for name in others)]
