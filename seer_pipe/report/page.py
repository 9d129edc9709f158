"""RUN/report/index.html: one file that needs no network, made again on demand, also while a run is training."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
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
from seer_pipe.objectives.settings import Sign
from seer_pipe.report.charts import run_charts
from seer_pipe.report.history import folded, starts
from seer_pipe.report.ingested import Ingested, ingested, sample_numbers
from seer_pipe.report.thumbnails import crops, data_uri, thumbnail, thumbnails
from seer_pipe.shards import ShardSet
from seer_pipe.store import READ_ONLY, FolderStore
from seer_pipe.train.checkpoint import Checkpoints, store_of
from seer_pipe.train.events import read_events
from seer_pipe.train.heartbeat import read_heartbeat
from seer_pipe.train.telemetry import read_metrics

STORED, CROPPED, EVENTS = 24, 4, 200  # images shown, images whose crops are shown, newest events shown
DECODABLE = {"too_small", "bad_aspect", "duplicate"}  # rejected, and yet images that open like any other
MOST_BYTES = 16 << 20  # of a rejected file that is opened
Verdict = tuple[bool, str]


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
    page = environment().get_template("report.html").render(
        name=config.name, folder=str(run), made=datetime.now().astimezone().isoformat(" ", "minutes"),
        headline=_headline(rows, derived), verdicts=verdicts(rows, events, derived, config.objective.signs()),
        charts=run_charts(rows, config.objective.panels, derived.get("chance_loss")),
        sets=sets, problems=problems, crops=shown,
        events=[_event(event) for event in folded(events)[-EVENTS:]],
        starts=_starts(events, run), event_counts=_count(events), replaced=_replaced(run),
        checkpoints=_checkpoints(run), evaluations=_evaluations(run),
        derived=[(name, number(value)) for name, value in derived.items()],
        recipe=yaml.safe_dump(tree, sort_keys=False, default_flow_style=None), style=style(),
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
    return files("seer_pipe.report").joinpath(name).read_text()


def style() -> Markup:
    return Markup(_source("style.css"))


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


def _headline(rows: list[dict[str, float]], derived: dict[str, Any]) -> list[tuple[str, str]]:
    last = rows[-1] if rows else {}
    step, steps = int(last.get("step", 0)), derived.get("steps", 0)
    facts = [("steps", f"{step:,} of {steps:,}"), ("images seen", f"{int(last.get('images', 0)):,}")]
    if "loss" in last:
        chance = derived.get("chance_loss")
        label, of_chance = ("loss", "") if chance is None else ("loss (chance)", f" ({chance:.3f})")
        facts.append((label, f"{last['loss']:.3f}{of_chance}"))
    if rate := last.get("images_per_s"):
        left = derived.get("images", 0) - last["images"]
        facts += [("images/s", f"{rate:,.1f}"), ("to go", duration(left / rate))]
    return facts


def duration(seconds: float) -> str:
    """3725 as 1 h 02 min."""
    minutes = round(seconds / 60)
    return f"{seconds:.0f} s" if minutes < 2 else f"{minutes // 60} h {minutes % 60:02d} min"


def verdicts(
    rows: list[dict[str, float]], events: list[dict[str, Any]], derived: dict[str, Any], signs: Sequence[Sign]
) -> list[Verdict]:
    """What to look at, judged by the last logged step: (whether it is healthy, a sentence)."""
    if not rows:
        return [(False, "no step was logged yet")]
    last = rows[-1]
    if "effective_rank" in last:
        last = last | {"effective_rank_most": max(row.get("effective_rank", 0.0) for row in rows)}
    if last["step"] > derived.get("settled_steps", 0):
        judged = ((sign, sign.judge(last)) for sign in signs)
        found = [
            verdict if verdict[0] else (False, f"{verdict[1]}; {sign.advice}") for sign, verdict in judged if verdict
        ]
    else:
        found = [(True, "too early to judge the objective: it warms up")]
    if (wait := last.get("data_wait")) is not None:
        found.append((wait < 0.2, f"training waits {wait:.0%} of the time for data"))
    bad = Counter(event["event"] for event in events if event["event"] in ("error", "rollback", "skip", "warning"))
    if bad:
        found.append((False, "events to read: " + ", ".join(f"{count} x {name}" for name, count in bad.items())))
    return found


def number(value: Any) -> str:
    """1234567 as 1,234,567, and 2.772588722239781 as 2.773."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return str(value)
    return f"{value:,}" if isinstance(value, int) else f"{value:,.4g}" if abs(value) < 1e4 else f"{value:,.0f}"


def _starts(events: list[dict[str, Any]], run: Path) -> dict[str, Any]:
    """One row per start, and all of them in a sentence."""
    found = starts(events, read_heartbeat(run))
    rows = [[f"{one.began:%Y-%m-%d %H:%M:%S}", f"{one.first:,} to {one.last:,}", one.ended, duration(one.seconds),
             f"{one.redone:,}", str(one.world), one.machine.get("host", ""), one.machine.get("on", ""),
             one.machine.get("precision", ""), one.machine.get("versions", "")] for one in found]  # fmt: skip
    killed, redone = sum(one.ended == "killed" for one in found), sum(one.redone for one in found)
    total = duration(sum(one.seconds for one in found))
    summary = f"{len(found):,} starts, {killed:,} of them killed; {redone:,} steps repeated; {total} in all."
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
    """One row per file of RUN/evaluation, whatever numbers it holds."""
    rows = []
    for file in sorted((run / "evaluation").glob("*.json")):
        result = json.loads(file.read_text())
        if not isinstance(result, dict):
            continue
        shares = {k: v for k, v in result.items() if isinstance(v, float) and 0 <= v <= 1 and k != "temperature"}
        plain = {k: v for k, v in result.items() if isinstance(v, str | int | bool) and k not in ("evaluation",)}
        seen = plain.pop("images_seen", "")
        about = ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in plain.items())
        values = ", ".join(f"{name.replace('_', ' ')} {value:.1%}" for name, value in shares.items())
        rows.append([str(result.get("evaluation", file.stem)), values, f"{seen:,}" if seen != "" else "", about])
    return rows
