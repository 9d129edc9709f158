"""Features and prototypes of images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from seer_pipe.cli.common import AsJson, show
from seer_pipe.cli.job import as_job

verbs = typer.Typer()


@verbs.command()
@as_job
def embed(
    subject: Annotated[Path, typer.Argument(help="A run's folder, or an exported backbone's.")],
    data: Annotated[str, typer.Argument(help="Shard set with the images.")],
    out: Annotated[Path, typer.Option(help="Parquet file: key, shard, index, prototype, confidence, feature.")],
    as_json: AsJson = False,
) -> None:
    """Write the features of all images, and the prototypes they are nearest to; interrupted, it goes on."""
    from seer_pipe.evaluate.embed import embed as embed_all

    result = embed_all(subject, data, out, say=lambda line: print(line, file=sys.stderr))
    if result is not None:
        show(result, as_json)


@verbs.command()
def assign(
    subject: Annotated[Path, typer.Argument(help="A run's folder, or its export --format full.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    as_json: AsJson = False,
) -> None:
    """Name the prototype that each image is nearest to, and how surely."""
    from seer_pipe.evaluate.embed import assign_files

    for found in assign_files(subject, images):
        if as_json:
            print(json.dumps(found))
        elif found["prototype"] is None:
            print(f"{found['file']}: {found['reason']}", file=sys.stderr)
        else:
            print(found["file"], found["prototype"], found["confidence"], sep="\t")
