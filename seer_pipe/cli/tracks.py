"""Patches tracked in videos, which ``seer-ingest`` makes a shard set of as of any other input."""

from __future__ import annotations

import typer

verbs = typer.Typer()


@verbs.command(context_settings={"ignore_unknown_options": True, "allow_extra_args": True}, add_help_option=False)
def tracks(context: typer.Context) -> None:
    """Find patches that move in a set of video clips, and follow them: the same as [bold]seer-ingest tracks[/bold]."""
    from ingest.cli import main

    main(["tracks", *context.args], "seer-pipe")
