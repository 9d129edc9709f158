"""RUN/report/index.html: one file that needs no network, made again on demand, also while a run is training."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import dataclass
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import jinja2
import pyarrow.parquet as pq
import yaml
from markupsafe import Markup
from PIL import Image

from seer_pipe import config as settings
from seer_pipe.errors import UserError
from seer_pipe.evaluate.results import kept
from seer_pipe.report.charts import number, run_charts
from seer_pipe.report.evaluated import evaluation_charts, results
from seer_pipe.report.health import overall, verdicts
from seer_pipe.report.history import Start, folded, restarts, rollbacks, starts
from seer_pipe.report.ingested import Ingested, ingested, sample_numbers
from seer_pipe.report.recipe import changes
from seer_pipe.report.thumbnails import crops, data_uri, thumbnail, thumbnails
from seer_pipe.shards import ShardSet
from seer_pipe.store import READ_ONLY, FolderStore
from seer_pipe.train.checkpoint import Checkpoints
from seer_pipe.train.committed import store_of
from seer_pipe.train.events import read_events
from seer_pipe.train.heartbeat import read_heartbeat
from seer_pipe.train.telemetry import read_metrics
from seer_pipe.units import duration

STORED, CROPPED, EVENTS = 24, 4, 200  # images shown, images whose crops are shown, newest events shown
DECODABLE = {"too_small", "bad_aspect", "duplicate"}  # rejected, and yet images that open like any other
#: Of the newest logged step, where it has them: metric, label, form.
_MACHINE = (("mfu", "MFU", "{:.1%}"), ("data_wait", "waiting for data", "{:.0%}"), ("gpu_busy", "GPU busy", "{:.0%}"),
            ("cpu_cores", "CPU cores busy", "{:.1f}"), ("memory_gb", "peak memory", "{:.2f} GB"))  # fmt: skip
MOST_BYTES = 16 << 20  # of a rejected file that is opened


def write_report(run: Path, out: Path | None = None) -> Path:
    """Write the report of the run in folder ``run``, by default into RUN/report; its path. UserError where that is no
    run, or cannot be written to.

    A shard set that cannot be reached is reported on the page; the rest of it is written all the same.
    """
    file = run / "config.yaml"
    if not file.is_file():
        raise UserError(f"{run}: not a run's folder (no config.yaml)")
    tree = yaml.safe_load(file.read_text())
    config, derived = settings.load(file), tree.pop("derived", {})
    rows, events = read_metrics(run), read_events(run)
    sets: list[SetOnPage] = []
    shown: list[list[tuple[str, int]]] = []
    problems: list[str] = []
    for path in config.data.paths:
        try:
            shards = ShardSet.open(path)
            sets.append(_set(shards))
            shown = shown or [
                [(data_uri(crop, 90), crop.width) for crop in row]
                for row in crops(shards, config, sample_numbers(len(shards), CROPPED))
            ]
        except (UserError, OSError) as error:
            problems.append(f"{path}: {error}")
    beat = read_heartbeat(run)
    begun = starts(events, beat)
    marks = [*restarts(begun), *rollbacks(events)]
    found = verdicts(rows, events, derived, config.objective.signs())
    curves = run_charts(rows, config.objective.panels, derived.get("chance_loss"), marks)
    base, changed = changes(config)
    page = environment().get_template("report.html").render(
        name=config.name, folder=str(run), made=datetime.now().astimezone().isoformat(" ", "minutes"),
        health=overall(rows, begun[-1] if begun else None, beat, derived, found), verdicts=found,
        headline=_headline(rows, derived, begun), marks=marks,
        charts=[*curves[:1], *evaluation_charts(results(run, rows), rows, marks), *curves[1:]],
        sets=sets, problems=problems, crops=shown,
        events=[_event(event) for event in folded(events)[-EVENTS:]],
        starts=_starts(begun), event_counts=_count(events), replaced=_replaced(run),
        checkpoints=_checkpoints(run), evaluations=_evaluations(run),
        derived=[(name, number(value)) for name, value in derived.items()],
        base=base, changed=changed, recipe=yaml.safe_dump(tree, sort_keys=False, default_flow_style=None),
        style=asset("style.css", "charts.css"), script=asset("charts.js"),
    )  # fmt: skip
    try:
        return write_page(page, out or run / "report")
    except OSError as error:
        if error.errno not in READ_ONLY or out is not None:
            raise
        raise UserError(f"{run / 'report'}: {error.strerror}; --out names another folder for the page") from None


def write_page(page: str, folder: Path) -> Path:
    """Put the page into ``folder`` as index.html; its path."""
    store = FolderStore(folder)
    store.put("index.html", page.encode())
    return store.local_path("index.html")


def environment() -> jinja2.Environment:
    """The templates of this package, everything escaped, a name that is not given an error."""
    return jinja2.Environment(
        loader=jinja2.FunctionLoader(_source), autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True
    )


def _source(name: str) -> str:
    return files("seer_pipe.report").joinpath(name).read_text("utf-8")


def asset(*names: str) -> Markup:
    """Files of this package, one after another, as they stand."""
    return Markup("\n".join(map(_source, names)))


def style() -> Markup:
    return asset("style.css")


@dataclass
class SetOnPage:
    """A shard set's numbers with their pictures; the page reads the numbers through it."""

    numbers: Ingested
    pictures: list[str]
    shown: dict[str, list[tuple[str, str | None]]]  # reason: sources, each with a picture or none

    def __getattr__(self, name: str) -> Any:
        return getattr(self.numbers, name)

    @property
    def sides(self) -> list[tuple[str, int]]:
        return [(f"{p} %", pixels) for p, pixels in self.numbers.short_side.items()]


def _set(shards: ShardSet) -> SetOnPage:
    numbers = ingested(shards)
    stored = thumbnails(shards, sample_numbers(len(shards), STORED), 72)
    root = _folder_of_inputs(shards)
    shown = {
        reason: [(source, _rejected_picture(root, source) if reason in DECODABLE else None) for source in sources]
        for reason, sources in numbers.examples.items()
    }
    return SetOnPage(numbers, [data_uri(stored[sample]) for sample in sorted(stored)], shown)


def _folder_of_inputs(shards: ShardSet) -> Path | None:
    """Where the set was ingested from, if that was a folder (``ingest.json``, which the ingest keeps in the set)."""
    try:
        about = json.loads(shards.store.get("ingest.json"))["input"]
        return Path(about["path"]) if about["kind"] == "folder" else None
    except (OSError, ValueError, KeyError):
        return None


def _rejected_picture(root: Path | None, source: str) -> str | None:
    if root is None or not (root / source).is_file() or (root / source).stat().st_size > MOST_BYTES:
        return None
    try:
        return data_uri(thumbnail((root / source).read_bytes(), 48))
    except (OSError, ValueError, Image.DecompressionBombError):
        return None


def _headline(rows: list[dict[str, float]], derived: dict[str, Any], begun: list[Start]) -> list[tuple[str, str]]:
    last = rows[-1] if rows else {}
    step, steps = int(last.get("step", 0)), derived.get("steps", 0)
    facts = [("steps", f"{step:,} of {steps:,}"), ("images seen", f"{int(last.get('images', 0)):,}")]
    if "loss" in last:
        chance = derived.get("chance_loss")
        label, of_chance = ("loss", "") if chance is None else ("loss (chance)", f" ({chance:.3f})")
        facts.append((label, f"{last['loss']:.3f}{of_chance}"))
    if begun:
        facts.append(("time, all starts", duration(sum(one.seconds for one in begun))))
    if rate := last.get("images_per_s"):
        left = derived.get("images", 0) - last["images"]
        facts += [("images/s", f"{rate:,.1f}"), ("time to go", duration(left / rate))][: 2 if left > 0 else 1]
    for name, label, form in _MACHINE:
        if name in last:
            facts.append((label, form.format(last[name])))
    return facts


def _starts(found: list[Start]) -> dict[str, Any]:
    """One row per start, and all of them in a sentence."""
    rows = [[f"{one.began:%Y-%m-%d %H:%M:%S}", f"{one.first:,} to {one.last:,}", one.ended, duration(one.seconds),
             f"{one.redone:,}", str(one.world), one.machine.get("host", ""), one.machine.get("on", ""),
             one.machine.get("precision", ""), one.machine.get("versions", "")] for one in found]  # fmt: skip
    killed, redone = sum(one.ended == "killed" for one in found), sum(one.redone for one in found)
    total = duration(sum(one.seconds for one in found))
    count = f"{len(found):,} {'start' if len(found) == 1 else 'starts'}"
    summary = f"{count}, {killed:,} killed; {redone:,} steps repeated; {total} in all."
    return {"rows": rows, "summary": summary}


def _count(events: list[dict[str, Any]]) -> str:
    counts = Counter(event["event"] for event in events)
    return ", ".join(f"{count} x {name}" for name, count in counts.most_common())


def _event(event: dict[str, Any]) -> list[str]:
    rest = {name: value for name, value in event.items() if name not in ("time", "event", "step")}
    rest = {name: value for name, value in rest.items() if name not in ("machine", "before")}  # of the starts' table
    details = ", ".join(f"{name} {number(value)}" for name, value in rest.items())
    return [event["time"][:19].replace("T", " "), event["event"], number(event.get("step", "")), details]


def _replaced(run: Path) -> str:
    path = run / "quarantine.parquet"
    rows = pq.read_table(path).to_pylist() if path.exists() else []
    shards = Counter(row["shard"] for row in rows).most_common(3)
    most = "; most from " + ", ".join(f"{shard} ({count})" for shard, count in shards) if rows else ""
    return f"{len(rows):,} images had to be replaced while training{most}."


def _checkpoints(run: Path) -> list[tuple[str, str]]:
    """Step and megabytes of each."""
    checkpoints = Checkpoints(store_of(run))
    return [(f"{step:,}", f"{checkpoints.size(step) / 1e6:,.1f}") for step in checkpoints.steps()]


def _evaluations(run: Path) -> list[list[str]]:
    """One row per file of RUN/evaluation, whatever numbers it holds; each evaluation's in the order of training."""
    found = [(name, result) for name, result in kept(run).items() if isinstance(result, dict)]
    rows = []
    for name, result in sorted(found, key=lambda one: (one[1].get("evaluation", one[0]), one[1].get("images_seen", 0))):
        shares = {k: v for k, v in result.items() if isinstance(v, float) and 0 <= v <= 1 and k != "temperature"}
        plain = {k: v for k, v in result.items() if isinstance(v, str | int) and v is not False and k != "evaluation"}
        seen = plain.pop("images_seen", "")
        about = ", ".join(
            key.replace("_", " ") + ("" if value is True else f" {value}") for key, value in plain.items()
        )
        values = ", ".join(f"{key.replace('_', ' ')} {value:.1%}" for key, value in shares.items())
        rows.append([str(result.get("evaluation", name)), values, f"{seen:,}" if seen != "" else "", about])
    return rows
