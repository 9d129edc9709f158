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
    recalibrate: Annotated[bool, typer.Option(help="BatchNorm statistics of whole images, not of crops.")] = False,
    onnx: Annotated[bool, typer.Option(help="Add model.onnx, compared as well.")] = False,
) -> None:
    """Write the newest checkpoint's trunk for another library, load it back, and compare its features."""
    from seer_pipe.evaluate.release import export_run

    export_run(run, out, format, with_recalibration=recalibrate, onnx=onnx)
    print(out)
