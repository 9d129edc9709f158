"""The verbs of ``seer-ingest`` that ask how far a run is, or complete it, and what is printed at the end of one."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import Annotated

import typer

from ingest.cli_tools import AsJson, counted, print_rejected
from ingest.plan import ABOUT, UnitPlan, open_plan
from ingest.run import Summary, pending, sole
from ingest.run import finish as complete
from ingest.status import Status, look
from seer_pipe.errors import UserError
from seer_pipe.shards import HOLDS
from seer_pipe.share import Share
from seer_pipe.store import Store, open_store
from seer_pipe.units import duration

progress = typer.Typer()
Out = Annotated[str, typer.Argument(metavar="OUT", help="where the run goes to: a folder or s3://bucket/prefix")]


def plan_in(store: Store) -> UnitPlan:
    found = open_plan(store)
    if found is None:
        raise UserError(f"{store.url}: no run of seer-ingest here (no {ABOUT})")
    return found[0]


@progress.command()
def finish(out: Out, as_json: AsJson = False) -> None:
    """Write the manifest of a run whose shares are all done; the last of them does it, too."""
    store = open_store(out)
    plan = plan_in(store)
    if left := pending(plan):
        raise UserError(
            f"{store.url}: {len(left)} of {plan.units} units are not done, {left[0]} the first of them; run the "
            "command that began it again, or its shares that did not end well: see seer-ingest status"
        )
    with sole(store):
        report(complete(plan), as_json)


@progress.command()
def status(out: Out, as_json: AsJson = False) -> None:
    """How far a run is, and who is at work on it: one process, jobs of an array, or shares anywhere."""
    store = open_store(out)
    found = look(plan_in(store))
    if as_json:
        print(json.dumps(asdict(found)))
    else:
        show(found)


def show(found: Status) -> None:
    print(f"{found.url}: {found.done} of {found.inputs} inputs done, {found.units_done} of {found.units} units")
    if found.finished:
        print("finished")
    elif found.units_done == found.units:
        print(f"all units are done; seer-ingest finish {found.url} writes the manifest")
    elif not found.running:
        print("nothing is at work; the command that began it resumes")
    else:
        left = "" if found.eta_s is None else f", {duration(found.eta_s)} to go"
        print(f"running {len(found.running)}, {found.inputs_per_s:.1f} inputs/s{left}")
    for sign in found.running:
        rate = f"{sign.done} of {sign.inputs} inputs, {sign.inputs_per_s:.1f}/s"
        print(f"  {sign.share:8} {rate}  on {sign.host} (process {sign.pid})")
    for sign in found.failed:
        print(f"  {sign.share:8} failed on {sign.host}: {sign.error}")
    for sign in found.silent:
        print(f"  {sign.share:8} silent: killed, on {sign.host} (process {sign.pid})")


def left_to_others(plan: UnitPlan, share: Share, left: int, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"url": plan.store.url, "share": str(share), "units": plan.units, "left": left}))
    else:
        print(f"{plan.store.url}: share {share} is done; {left} of {plan.units} units are left to other shares")


def report(summary: Summary, as_json: bool) -> None:
    if as_json:
        print(json.dumps(asdict(summary)))
        return
    what = f"{summary.samples} {HOLDS[summary.media]} in {counted(summary.shards)}"
    print(f"{summary.url}: {what}, {summary.bytes / 1e6:.1f} MB")
    print(f"{summary.inputs} inputs: {summary.stored} stored, {summary.inputs - summary.stored} rejected")
    print_rejected(dict(summary.rejected))
