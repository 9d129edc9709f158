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
    fresh: Annotated[bool, typer.Option(help="Begin anew; a run that is there is moved aside, not removed.")] = False,
    init_from: Annotated[Path | None, typer.Option(help="First weights of the trunk: an export of ours, or a file of "
                                                        "torchvision, timm, Transformers, SEER or SwAV.")] = None,
) -> None:  # fmt: skip
    """Train a recipe, or go on where its run was stopped.

    Several processes: [bold]torchrun --nproc-per-node N -m seer_pipe train CONFIG …[/bold]
    """
    from seer_pipe.recipes import load_recipe
    from seer_pipe.run import start

    recipe = load_recipe(config, overrides or [])
    finished = start(recipe, out or Path("runs") / recipe.name, fresh=fresh, init_from=init_from)
    raise typer.Exit(0 if finished else 130)
