"""What a person looks at."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seer_pipe.cli.common import AsJson, Labels, columns, made, show
from seer_pipe.summary import conclude

verbs = typer.Typer()


@verbs.command()
def report(
    run: Annotated[Path, typer.Argument(help="The run's folder; the run may be training.")],
    out: Annotated[Path | None, typer.Option(help="Folder for the page; by default RUN/report.")] = None,
    as_json: AsJson = False,
) -> None:
    """Write RUN/report/index.html: what was ingested, the curves, what happened, what the network sees."""
    from seer_pipe.report.page import write_report

    made("report", write_report(run, out), as_json, "open it in a browser")


@verbs.command()
def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of runs, or folders with runs in them.")],
    out: Annotated[Path | None, typer.Option(help="Folder for a page with the same and with curves.")] = None,
    as_json: AsJson = False,
) -> None:
    """Put runs side by side: accuracy, images, hours, speed, memory, health; on a page the curves too."""
    from rich.console import Console

    from seer_pipe.report.compare import read_sides, summary, table, write_comparison

    sides = read_sides(runs)
    page = None if out is None else write_comparison(sides, out)
    if as_json:
        more = {} if page is None else {"page": str(page)}
        show({"runs": [summary(side) for side in sides], **more}, as_json)
        return
    heads, rows, notes = table(sides)
    console = Console(highlight=False)
    for line in columns(heads, rows):
        console.print(line, markup=False, soft_wrap=True)
    for line in [*notes, *(f"{side.name}: {text}" for side in sides for text in side.findings)]:
        console.print(line, markup=False, soft_wrap=True)
    if page is not None:
        made("comparison", page, as_json, "open it in a browser")


@verbs.command()
def atlas(
    run: Annotated[Path, typer.Argument(help="The run's folder; with --data also an exported backbone's.")],
    out: Annotated[Path, typer.Option(help="Folder for the page and its pictures; an atlas there is replaced.")],
    data: Annotated[str | None, typer.Option(help="Shard set, if not the one that the run was trained on.")] = None,
    beside: Annotated[
        str | None,
        typer.Option(
            help="Second shard set on the same map, or a file of [bold]seer-pipe embed[/bold] of one: what "
            "came, what went."
        ),
    ] = None,
    embeddings: Annotated[
        Path | None, typer.Option(help="File of [bold]seer-pipe embed[/bold]; by default RUN's own, made if need be.")
    ] = None,
    clusters: Annotated[
        int | None,
        typer.Option(
            min=2,
            help="So many clusters by k-means of the features; by default those that the run's objective names, and "
            "where it names none by k-means as many as the square root of the number of images, at most 16,000.",
        ),
    ] = None,
    labels: Labels = None,
    search: Annotated[
        list[Path] | None, typer.Option(help="Image file to find the nearest images of; repeatable.")
    ] = None,
    pictures: Annotated[
        int, typer.Option(min=1, help="About how many images the map shows; of a larger set some of each cluster.")
    ] = 100_000,
    as_json: AsJson = False,
) -> None:
    """Draw what is in a shard set: a map of its images by cluster, on a page with a search and lists of keys."""
    from seer_pipe.report.atlas import write_atlas

    page = write_atlas(
        run,
        out,
        data,
        beside=beside,
        embeddings=embeddings,
        clusters=clusters,
        labels=labels,
        search=search or (),
        pictures=pictures,
    )
    made("atlas", page, as_json, "open it in a browser")


@verbs.command("atlas-keys")
def atlas_keys(
    names: Annotated[
        Path, typer.Argument(help="File of [bold]seer-pipe embed[/bold], or an atlas's clusters.parquet.")
    ],
    clusters: Annotated[list[int], typer.Argument(help="Numbers of the clusters.")],
    out: Annotated[Path, typer.Option(help="CSV file (key,shard) to write, for seer-ingest exclude --keys.")],
    as_json: AsJson = False,
) -> None:
    """List the images of some clusters, for [bold]seer-ingest exclude[/bold]."""
    from seer_pipe.report.atlas import write_keys

    show({"keys": str(out), "images": write_keys(names, clusters, out)}, as_json)
    if not as_json:
        conclude("keys written", f"seer-ingest exclude SHARDS --keys {out}")
