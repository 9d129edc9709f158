"""Backbones to and from other libraries."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Annotated

import typer

from seer_pipe.cli.common import AsJson, made
from seer_pipe.cli.job import as_job

verbs = typer.Typer()


@verbs.command()
@partial(as_job, spread=False)
def export(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    out: Annotated[Path, typer.Option(help="New folder for the backbone.")],
    format: Annotated[str, typer.Option(help="torchvision, timm, huggingface, detectron2 or full.")] = "torchvision",
    recalibrate: Annotated[bool, typer.Option(help="BatchNorm statistics of whole images, not of crops.")] = False,
    onnx: Annotated[bool, typer.Option(help="Add model.onnx, compared as well.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the newest checkpoint's trunk for another library, load it back, and compare its features."""
    from seer_pipe.evaluate.release import export_run

    export_run(run, out, format, with_recalibration=recalibrate, onnx=onnx)
    made("backbone", out, as_json)


@verbs.command()
def init(
    source: Annotated[Path, typer.Argument(help="Checkpoint of torchvision, timm, Transformers, SEER or SwAV.")],
    out: Annotated[Path, typer.Option(help="New folder for the backbone.")],
    as_json: AsJson = False,
) -> None:
    """Make a backbone of a public checkpoint, for eval, embed, export's readers and further training."""
    from seer_pipe.export import init_backbone

    trunk, loaded = init_backbone(source, out)
    if not as_json:
        left_out = f"; left out: {', '.join(loaded.left_out)}" if loaded.left_out else ""
        print(f"{trunk.name}: {loaded.tensors} tensors by their names in {loaded.library}{left_out}")
    made("backbone", out, as_json, trunk=trunk.name, tensors=loaded.tensors, library=loaded.library,
         left_out=list(loaded.left_out))  # fmt: skip
