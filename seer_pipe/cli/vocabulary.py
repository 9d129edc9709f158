"""The classes that a set's images came with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seer_pipe.cli.common import AsJson, Labels, show

verbs = typer.Typer()


@verbs.command()
def vocabulary(
    data: Annotated[str, typer.Argument(metavar="SET", help="Shard set.")],
    out: Annotated[Path, typer.Option(help="Folder for the classes of each image, which objective.vocabulary names.")],
    labels: Labels = None,
    tags: Annotated[
        str | None,
        typer.Option(help="Column of the sidecars: of text, whose words are tags, or of lists of tags."),
    ] = None,
    least: Annotated[int, typer.Option(min=1, help="Images that have a tag, so that it is a class.")] = 1,
    most: Annotated[int | None, typer.Option(min=2, help="Classes: those of the most images.")] = None,
    stop: Annotated[Path | None, typer.Option(help="File of tags that are no class, one per line.")] = None,
    synonyms: Annotated[Path | None, typer.Option(help="CSV file tag,of: each tag is replaced by the other.")] = None,
    threshold: Annotated[
        float,
        typer.Option(min=1, help="Images of a class with fewer than this come more often, by the root of the ratio."),
    ] = 1,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Find the classes of a shard set's images: one label of each, or the tags that stand beside them on the web."""
    from seer_pipe.evaluate.vocabulary import read_rules, write_vocabulary

    rules = read_rules(least, most, stop, synonyms, tags=tags is not None)
    show(write_vocabulary(data, out, labels=labels, tags=tags, rules=rules, threshold=threshold), as_json)
