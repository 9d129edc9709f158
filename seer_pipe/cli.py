"""The command ``seer-pipe``: one thin function a verb."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from seer_pipe.errors import UserError

app = typer.Typer(
    help="Pretrain a vision backbone on uncurated images, and take it elsewhere.",
    no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
)  # fmt: skip
evaluate = typer.Typer(help="What the features of a run or an export are worth.", no_args_is_help=True)
app.add_typer(evaluate, name="eval")

ConfigArgument = Annotated[Path, typer.Argument(help="A recipe, e.g. configs/quickstart.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change: key.path=value")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines for people.")]


@app.command()
def train(
    config: ConfigArgument,
    overrides: Overrides = None,
    run: Annotated[Path | None, typer.Option(help="The run's folder; by default runs/NAME.")] = None,
) -> None:
    """Train a recipe, or go on where its run was stopped.

    Several processes: [bold]torchrun --nproc-per-node N -m seer_pipe train CONFIG …[/bold]
    """
    from seer_pipe import config as settings
    from seer_pipe.train.loop import train as train_run

    recipe = settings.load(config, overrides or [])
    finished = train_run(recipe, run or Path("runs") / recipe.name)
    raise typer.Exit(0 if finished else 130)


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    run_cli(app)


def run_cli(cli: typer.Typer) -> None:
    try:
        cli()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print a result, a line a value or as JSON."""
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name.replace('_', ' ')}: {f'{value:.4f}' if isinstance(value, float) else value}")
