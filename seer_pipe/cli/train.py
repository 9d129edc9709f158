"""Training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seer_pipe.cli.common import ConfigArgument, Overrides

verbs = typer.Typer()


@verbs.command()
def train(
    config: ConfigArgument,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default runs/NAME.")] = None,
) -> None:
    """Train a recipe, or go on where its run was stopped.

    Several processes: [bold]torchrun --nproc-per-node N -m seer_pipe train CONFIG …[/bold]
    """
    from seer_pipe.recipes import load_recipe
    from seer_pipe.train.loop import train as train_run

    recipe = load_recipe(config, overrides or [])
    finished = train_run(recipe, out or Path("runs") / recipe.name)
    raise typer.Exit(0 if finished else 130)
