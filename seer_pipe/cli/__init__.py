"""The command ``seer-pipe``: a file a group of verbs, one thin function a verb."""

from __future__ import annotations

import typer

from seer_pipe.cli import data, doctor, embed, evaluate, export, launch, quickstart, report, show, train
from seer_pipe.cli.common import run_cli

app = typer.Typer(
    help="Pretrain a vision backbone on uncurated images, and take it elsewhere.",
    no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
)  # fmt: skip
for group in (quickstart, doctor, show, train, launch, data, evaluate, embed, export, report):
    app.add_typer(group.verbs)


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    run_cli(app)
