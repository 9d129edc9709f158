"""What became of a run's starts, from its events: how each ended, how long it took, what was done twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from itertools import pairwise
from typing import Any

Event = dict[str, Any]
_ENDS = {"stop": "stopped", "done": "done", "error": "failed"}


@dataclass(frozen=True)
class Start:
    """One process group's part of a run."""

    began: datetime
    first: int  # finished steps when it began
    last: int  # and when it was last heard of
    seconds: float
    ended: str  # stopped, done, failed, killed, or running
    redone: int  # steps of the start before that are taken again
    machine: dict[str, str]
    world: int


def starts(events: Sequence[Event], heartbeat: dict[str, Any] | None) -> list[Start]:
    """Oldest first. ``heartbeat``: the run's last one, by which it is known how far the last start has come.

    A start whose successor begins while nothing says how it ended was killed; when, its successor has read from the
    heartbeat that it found.
    """
    begins = [n for n, event in enumerate(events) if event["event"] in ("start", "resume")]
    found = []
    for begin, end in pairwise([*begins, len(events)]):
        own, after = events[begin:end], events[end] if end < len(events) else None
        how = next((_ENDS[event["event"]] for event in reversed(own) if event["event"] in _ENDS), None)
        heard, last = _time(own[-1]), max(int(event["step"]) for event in own)
        beat = heartbeat if after is None else after.get("before")
        if how is None and beat:
            heard = max(heard, datetime.fromtimestamp(beat["time"], heard.tzinfo))
            last = max(last, int(beat["step"]))
        ended = how or ("running" if after is None else "killed")
        first = own[0]
        redone = max(0, int((first.get("before") or {}).get("step", 0)) - int(first["step"]))
        seconds = (heard - _time(first)).total_seconds()
        found.append(Start(_time(first), int(first["step"]), last, seconds, ended, redone,
                           first.get("machine", {}), int(first.get("world", 1))))  # fmt: skip
    return found


def folded(events: Sequence[Event]) -> list[Event]:
    """The same with each row of checkpoints between other events as one, so that a long run's others are seen."""
    rows: list[Event] = []
    for event in events:
        if event["event"] == "checkpoint" and rows and rows[-1]["event"] == "checkpoint":
            first = rows[-1].get("from step", rows[-1]["step"])
            rows[-1] = {**event, "checkpoints": rows[-1].get("checkpoints", 1) + 1, "from step": first}
        else:
            rows.append(event)
    return rows


def restarts(found: Sequence[Start]) -> list[tuple[float, str]]:
    """The steps at which a run was resumed, and how the start before had ended: marks for charts."""
    return [
        (after.first, f"resumed at step {after.first:,} ({before.ended} before)") for before, after in pairwise(found)
    ]


def rollbacks(events: Sequence[Event]) -> list[tuple[float, str]]:
    """The steps to which a run rolled back: marks for charts."""
    return [
        (event["step"], f"rolled back from step {event['sick']:,} to step {event['step']:,}")
        for event in events
        if event["event"] == "rollback"
    ]


def _time(event: Event) -> datetime:
    return datetime.fromisoformat(event["time"])
