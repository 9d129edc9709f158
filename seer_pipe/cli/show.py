"""What a person looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seer_pipe.cli.common import AsJson, ConfigArgument, Overrides, made

look = typer.Typer(help="Pictures of what a run works on.", no_args_is_help=True)
verbs = typer.Typer()
verbs.add_typer(look, name="show")


@look.command()
def crops(
    config: ConfigArgument,
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
    overrides: Overrides = None,
    images: Annotated[int, typer.Option(min=1, help="Rows of the picture.")] = 6,
    step: Annotated[int, typer.Option(min=0, help="Step of the training whose first images are shown.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Draw images with all their crops, as the network sees them."""
    from seer_pipe.recipes import load_recipe
    from seer_pipe.report.crops import draw_crops

    draw_crops(load_recipe(config, overrides or []), out, images=images, step=step)
    made("picture", out, as_json)
