"""Features and clusters of images."""

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
    out: Annotated[Path, typer.Option(help="Parquet file: key, shard, index, cluster, confidence, feature.")],
    as_json: AsJson = False,
) -> None:
    """Write the features of all images, and the clusters that the objective names; interrupted, it continues."""
    from seer_pipe.evaluate.embed import embed as embed_all

    result = embed_all(subject, data, out, say=lambda line: print(line, file=sys.stderr))
    if result is not None:
        show(result, as_json)


@verbs.command()
def assign(
    subject: Annotated[Path, typer.Argument(help="A run's folder, or an exported backbone's.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    atlas: Annotated[
        Path | None,
        typer.Option(
            help="Folder of [bold]seer-pipe atlas[/bold] whose clusters by k-means are meant; by default the "
            "objective's, where it names some."
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Name the cluster that each image belongs to, and how surely."""
    from seer_pipe.evaluate.assign import assign_files

    for found in assign_files(subject, images, atlas):
        if as_json:
            print(json.dumps(found))
        elif found["cluster"] is None:
            print(f"{found['file']}: {found['reason']}", file=sys.stderr)
        else:
            print(found["file"], found["cluster"], found["confidence"], sep="\t")
