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
    data: Annotated[str | None, typer.Option(help="Shard set for --recalibrate, if not the run's own.")] = None,
    onnx: Annotated[bool, typer.Option(help="Add model.onnx, compared as well.")] = False,
    as_json: AsJson = False,
) -> None:
    """Write the newest checkpoint's trunk for another library, load it back, and compare its features."""
    from seer_pipe.evaluate.release import export_run

    export_run(run, out, format, with_recalibration=recalibrate, data=data, onnx=onnx)
    made("backbone", out, as_json, f"{out / 'README.md'} says how to load it")


@verbs.command()
def init(
    source: Annotated[
        Path,
        typer.Argument(help="Checkpoint, a file or a folder: torchvision, timm, Transformers, SEER, SwAV, MoCo, …"),
    ],
    out: Annotated[Path, typer.Option(help="New folder for the backbone.")],
    as_json: AsJson = False,
) -> None:
    """Make a backbone of a public checkpoint, for eval, embed, export's readers and further training."""
    from seer_pipe.export import init_backbone

    trunk, loaded = init_backbone(source, out)
    if not as_json:
        names = loaded.library + (f" under {loaded.prefix}" if loaded.prefix else "")
        print(f"{trunk.name} ({trunk.stem_kind} stem): {loaded.tensors} tensors by their names in {names}")
        for part, tensors in loaded.parts_left_out.items():
            print(f"not taken: {part} ({tensors} {'tensor' if tensors == 1 else 'tensors'})")
    made("backbone", out, as_json, f"seer-pipe train RECIPE --init-from {out}", trunk=trunk.name,
         stem=trunk.stem_kind, tensors=loaded.tensors, library=loaded.library, prefix=loaded.prefix,
         left_out=loaded.parts_left_out)  # fmt: skip
