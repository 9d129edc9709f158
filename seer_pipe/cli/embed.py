"""Features and clusters of images."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated

import typer

from seer_pipe.cli.common import AsJson, OfFeatures, OfSet, show
from seer_pipe.cli.job import as_job
from seer_pipe.summary import conclude

verbs = typer.Typer()


@verbs.command()
@as_job
def embed(
    subject: Annotated[Path, typer.Argument(help="A run's folder, or an exported backbone's.")],
    data: Annotated[str, typer.Argument(help="Shard set with the images.")],
    out: Annotated[Path, typer.Option(help="Parquet file: key, shard, index, cluster, confidence, feature.")],
    share: Annotated[
        str, typer.Option(help="I/N: only this share of the images, 0/N to N-1/N; others do the others.")
    ] = "",
    as_json: AsJson = False,
) -> None:
    """Write the features of all images, and the clusters that the objective names; interrupted, it continues."""
    from seer_pipe.evaluate.embed import embed as embed_all
    from seer_pipe.share import Share

    part = Share.parse(share)
    result = embed_all(subject, data, out, share=part, say=lambda line: print(line, file=sys.stderr))
    if result is not None:
        show(result, as_json)
        if not as_json:
            conclude(f"{out}: embeddings written", f"seer-pipe atlas {subject} --embeddings {out} --out atlas")


@verbs.command()
def assign(
    subject: Annotated[Path, typer.Argument(help="A run's folder, or an exported backbone's.")],
    images: Annotated[list[Path], typer.Argument(help="Image files, or folders of them.")],
    atlas: Annotated[
        Path | None,
        typer.Option(
            help="Folder of [bold]seer-pipe atlas[/bold] whose clusters by k-means are meant; by default the "
            "objective's, where it names some. Also of [bold]seer-pipe cluster[/bold]."
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


@verbs.command()
@as_job
def cluster(
    source: OfFeatures,
    out: Annotated[Path, typer.Option(help="Folder for clusters.parquet (key, shard, …), centroids and embeddings.")],
    data: OfSet = None,
    clusters: Annotated[
        int | None,
        typer.Option(min=2, help="By default the square root of the number of images, at most 16,000."),
    ] = None,
    euclidean: Annotated[
        bool, typer.Option("--euclidean", help="By distance of the features as they are; else by their cosine.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Cluster the images of a shard set by k-means of their features."""
    from seer_pipe.evaluate.cluster import cluster_set

    result = cluster_set(
        source, data, out, clusters, spherical=not euclidean, say=lambda line: print(line, file=sys.stderr)
    )
    if result is not None:
        show(result, as_json)
        if not as_json:
            conclude(f"{out}: clusters written", f"seer-pipe curate {source} --out curation")
