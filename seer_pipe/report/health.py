"""Whether a run is healthy, and why: judged by its newest metrics, its last start and its newest events."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from seer_pipe.objectives.settings import Sign
from seer_pipe.report.history import Start
from seer_pipe.units import duration

Verdict = tuple[bool, str]
RECENT = 10  # logged steps whose median share of waiting counts: a single one is noisy
SILENT = 600.0  # seconds without a heartbeat after which a run is no longer taken to be running
TROUBLE = {"rollback": "rollbacks", "skip": "skipped steps", "warning": "warnings"}


@dataclass(frozen=True)
class Overall:
    """The verdict on a run in a word and a sentence; ``level`` is the colour of it."""

    level: Literal["good", "warn", "bad", "early"]
    word: str
    why: str


def overall(
    rows: Sequence[Mapping[str, float]], last: Start | None, heartbeat: Mapping[str, Any] | None,
    derived: Mapping[str, Any], found: Sequence[Verdict],
) -> Overall:  # fmt: skip
    """The verdict of `verdicts`' findings and of how the last start of the run ended."""
    step = int(rows[-1]["step"]) if rows else 0
    done = f"{step:,} of {derived.get('steps', 0):,} steps"
    wrong = [text for good, text in found if not good]
    silent = time.time() - heartbeat["time"] if heartbeat else 0.0
    if last is not None and last.ended == "failed":
        return Overall("bad", "Failed", f"after {done}; the last error stands under Events and restarts")
    if last is not None and last.ended == "running" and silent > SILENT:
        why = f"no heartbeat for {duration(silent)}, after {done}: it was killed, or its machine is gone"
        return Overall("bad", "Not running", f"{why}; the same command resumes it")
    if not rows or (step <= derived.get("settled_steps", 0) and not wrong):
        return Overall("early", "Too early to tell", f"{done}; the objective is judged once it has warmed up")
    state = {"done": "done", "stopped": "stopped, the same command resumes it"}.get(last.ended if last else "", "")
    state = f" ({state})" if state else ""
    if wrong:
        more = f"; and {len(wrong) - 1} more below" if len(wrong) > 1 else ""
        return Overall("warn", "Needs attention", f"{wrong[0]}{more}; {done}{state}")
    return Overall("good", "Healthy", f"{done}{state}; no sign of collapse, and data keeps up")


def verdicts(
    rows: Sequence[Mapping[str, float]], events: Sequence[Mapping[str, Any]], derived: Mapping[str, Any],
    signs: Sequence[Sign],
) -> list[Verdict]:  # fmt: skip
    """What to look at: (whether it is healthy, a sentence that ends with what to try where it is not)."""
    if not rows:
        return [(False, "no step was logged yet")]
    last = rows[-1]
    if last["step"] > derived.get("settled_steps", 0):
        judged = ((sign, sign.judge(last)) for sign in signs)
        found = [
            verdict if verdict[0] else (False, f"{verdict[1]}; {sign.advice}") for sign, verdict in judged if verdict
        ]
    else:
        found = [(True, "too early to judge the objective: it warms up")]
    if waits := [row["data_wait"] for row in rows[-RECENT:] if "data_wait" in row]:
        share = float(np.median(waits))
        advice = "; raise data.threads where cores are idle: seer-pipe bench data says what limits"
        found.append((share < 0.2, f"training waits {share:.0%} of the time for data{'' if share < 0.2 else advice}"))
    return found + _trouble(events, last["step"])


def _trouble(events: Sequence[Mapping[str, Any]], step: float) -> list[Verdict]:
    """Skips, rollbacks and warnings: of the newest tenth of the steps, and those that the run has left behind."""
    found: list[Verdict] = []
    for recent in (True, False):
        some = [one for one in events if one["event"] in TROUBLE and (one.get("step", step) > 0.9 * step) == recent]
        counts = Counter(TROUBLE[one["event"]] for one in some)
        listed = ", ".join(f"{what}: {count:,}" for what, count in counts.items())
        if recent and some:
            reason = f"; last: {some[-1]['reason']}" if "reason" in some[-1] else ""
            found.append((False, f"in the newest tenth of the steps, {listed}{reason}"))
        elif some:
            found.append((True, f"earlier, and recovered from: {listed}"))
    return found
