"""How far a run is: by what is committed, and by the signs of life of those at work."""

from __future__ import annotations

from dataclasses import dataclass

from ingest.at_work import FAILED, Sign, signs
from ingest.plan import UnitPlan
from ingest.run import pending
from seer_pipe.shards import MANIFEST


@dataclass(frozen=True)
class Status:
    url: str
    units: int
    units_done: int  # committed
    inputs: int
    done: int  # inputs that have an outcome, committed or not
    finished: bool  # the manifest is there
    running: list[Sign]
    failed: list[Sign]
    silent: list[Sign]  # killed, or on a machine that is gone
    inputs_per_s: float  # of all that run
    eta_s: float | None  # seconds, at this rate; None where nothing is known of it


def look(plan: UnitPlan) -> Status:
    """How far the run of ``plan`` is now."""
    there = signs(plan.store)
    left = pending(plan)
    running = [sign for sign in there if sign.is_running()]
    failed = [sign for sign in there if sign.state == FAILED]
    done = plan.inputs - sum(map(plan.size, left)) + sum(sign.under_way for sign in running)
    rate = sum(sign.inputs_per_s for sign in running)
    return Status(
        url=plan.store.url,
        units=plan.units,
        units_done=plan.units - len(left),
        inputs=plan.inputs,
        done=min(done, plan.inputs),  # a unit may have been committed since its process gave its sign
        finished=not left and plan.store.size(MANIFEST) is not None,
        running=running,
        failed=failed,
        silent=[sign for sign in there if sign not in running and sign not in failed],
        inputs_per_s=rate,
        eta_s=(plan.inputs - done) / rate if rate > 0 else None,
    )
