"""Backbones to and from other libraries."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

verbs = typer.Typer()


@verbs.command()
def export(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    out: Annotated[Path, typer.Option(help="New folder for the backbone.")],
    format: Annotated[str, typer.Option(help="torchvision, timm, huggingface, detectron2 or full.")] = "torchvision",
) -> None:
    """Write the newest checkpoint's trunk for another library, load it back, and compare its features."""
    from seer_pipe.evaluate.verbs import export_run

    export_run(run, out, format)
    print(out)
