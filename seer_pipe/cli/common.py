"""What the verbs share: arguments, printing, and how an error ends a command."""

from __future__ import annotations

import errno
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from seer_pipe.errors import UserError, run_to_end
from seer_pipe.store import READ_ONLY
from seer_pipe.summary import conclude


def complete_recipe(begun: str) -> list[str]:
    """For the shell: the names of recipes; where there is none, it completes files."""
    from seer_pipe.recipes import recipes

    return [name for name in recipes() if name.startswith(begun)]


ConfigArgument = Annotated[
    Path, typer.Argument(help="A recipe's name, e.g. quickstart, or a YAML file.", autocompletion=complete_recipe)
]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change: key.path=value")]
Change = Annotated[
    list[str] | None,
    typer.Option(
        help="Setting to change within a run that has finished steps, such as its length, rate or batch: "
        "key.path=value; repeatable."
    ),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines for people.")]
#: The same for evaluations and the atlas.
Labels = Annotated[
    str | None,
    typer.Option(help="Of a shard set: a column, a CSV file (source,label or key,label), or 'folder'."),
]
#: The same for what is made of features.
OfFeatures = Annotated[
    Path, typer.Argument(help="A run's folder, an exported backbone's, or a file of [bold]seer-pipe embed[/bold].")
]
OfSet = Annotated[str | None, typer.Argument(help="Shard set; by default the one of the embeddings, or of the run.")]
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no room for what is to be written
PLACE = {*READ_ONLY, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}  # nothing can be written there


def run_cli(cli: typer.Typer) -> None:
    try:
        run_to_end(cli)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except OSError as error:
        if error.errno not in FULL | PLACE:
            raise
        advice = "; make room and run the same command again" if error.errno in FULL else ""
        print(f"error: {error.filename or 'disk'}: {error.strerror}{advice}", file=sys.stderr)
        sys.exit(2)


def changed_keys(changes: list[str] | None) -> list[str]:
    """The dotted keys that ``--change`` names."""
    return [text.partition("=")[0] for text in changes or []]


def made(what: str, place: Path, as_json: bool, *then: str, **more: Any) -> None:
    """Print where something was written, alone or as JSON under the name ``what``; ``then``: what may come next."""
    if as_json:
        print(json.dumps({what: str(place), **more}))
        return
    print(place)
    conclude(f"{what} written", *then)


def columns(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """A line of heads and one line per row, in columns as wide as their widest cell."""
    widths = [max(map(len, column)) for column in zip(heads, *rows, strict=True)]
    return [
        "  ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)).rstrip()
        for cells in (heads, *rows)
    ]


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print a result, one line per value or as JSON."""
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        if isinstance(value, dict):
            value = (
                ", ".join(f"{number} {what.replace('_', ' ')}" for what, number in value.items() if number) or "none"
            )
        print(f"{name.replace('_', ' ')}: {f'{value:.4f}' if isinstance(value, float) else value}")
