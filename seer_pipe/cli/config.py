"""What can be set."""

from __future__ import annotations

import json
import shutil
import textwrap
from dataclasses import asdict
from typing import Annotated

import typer

from seer_pipe.cli.common import AsJson

verbs = typer.Typer()


@verbs.command()
def config(
    section: Annotated[
        str | None, typer.Argument(help="train, optimizer, an objective, cluster, …, or a key: train.batch.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Explain the settings: type and range, default, what each does, and what a resume may do to it."""
    from seer_pipe.describe import settings

    rows = settings(section)
    if as_json:
        print(json.dumps([asdict(row) for row in rows], ensure_ascii=False))
        return
    width = min(shutil.get_terminal_size().columns, 100)
    for row in rows:
        default = "required" if row.default is None else f"default {row.default}"
        resume = f"{row.resume} at a resume" + (f": {row.why}" if row.why else "")
        print(f"{row.key}\n    {row.kind}; {default}; {resume}")
        print(textwrap.fill(row.about, width, initial_indent="    ", subsequent_indent="    "))
