"""What a person looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

verbs = typer.Typer()


@verbs.command()
def report(run: Annotated[Path, typer.Argument(help="The run's folder; the run may be going on.")]) -> None:
    """Write RUN/report/index.html: what was ingested, the curves, what happened, what the network sees."""
    from seer_pipe.report.page import write_report

    print(write_report(run))
