"""Which images of a set are worth training on."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from seer_pipe.cli.common import AsJson, Labels, OfFeatures, OfSet, show
from seer_pipe.cli.job import as_job
from seer_pipe.summary import conclude

verbs = typer.Typer()


@verbs.command()
@as_job
def curate(
    source: OfFeatures,
    out: Annotated[Path, typer.Option(help="Folder for keep.parquet, exclude.parquet and the page.")],
    data: OfSet = None,
    keep: Annotated[
        int | None,
        typer.Option(
            min=1, help="Images to keep; by default so many that no group gives more than the median one holds."
        ),
    ] = None,
    repeats: Annotated[
        int,
        typer.Option(
            min=1, help="How often an epoch may have an image, where its group has too few; then --keep counts "
            "repeats, and repeats.parquet is written for data.repeats."
        ),
    ] = 1,
    duplicates: Annotated[
        float | None,
        typer.Option(
            min=-1.0, max=1.0,
            help="Two images are one where the cosine of their features, less the mean of all, is above this; with 1 "
            "none are. By default 0.9, or more in a group that would lose more than half of its images.",
        ),
    ] = None,
    labels: Labels = None,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Choose a balanced part of a shard set without near duplicates, and list the rest for seer-ingest exclude."""
    from seer_pipe.report.curated import write_curation

    result = write_curation(
        source,
        out,
        data,
        keep=keep,
        threshold=duplicates,
        repeats=repeats,
        labels=labels,
        say=lambda line: print(line, file=sys.stderr),
    )
    if result is not None:
        show(result, as_json)
        if not as_json:
            exclude = f"seer-ingest exclude SHARDS --keys {out / 'exclude.parquet'}"
            conclude(f"{out}: curated", f"open {result['page']} in a browser", exclude)
