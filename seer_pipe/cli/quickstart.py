"""The whole way in one command."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

verbs = typer.Typer()


@verbs.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for all that is made; it is replaced.")] = Path("quickstart"),
    images: Annotated[Path | None, typer.Option(help="Folder of pictures; by default a small web is drawn.")] = None,
    config: Annotated[Path, typer.Option(help="A recipe's name or file.")] = Path("quickstart"),
    seed: Annotated[int, typer.Option(min=0, help="Of the drawn web and of the training.")] = 0,
) -> None:
    """The whole way in a few minutes: ingest, train, kill, resume, evaluate, export, reload."""
    from seer_pipe.quickstart.walk import walk

    walk(out, images, config, seed)
