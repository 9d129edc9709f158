"""Training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from seer_pipe.cli.common import Change, ConfigArgument, Overrides, changed_keys
from seer_pipe.summary import conclude

verbs = typer.Typer()


@verbs.command()
def train(
    config: ConfigArgument,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default runs/NAME.")] = None,
    fresh: Annotated[bool, typer.Option(help="Start over; a run that is there is moved aside, not removed.")] = False,
    init_from: Annotated[Path | None, typer.Option(help="First weights of the trunk: an export of ours, or a file of "
                                                        "torchvision, timm, Transformers, SEER or SwAV.")] = None,
    change: Change = None,
    show: Annotated[bool, typer.Option("--show", help="Print the resolved recipe with all that is derived, and "
                                                      "stop.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="A JSON object for each event and each logged step; lines "
                                                         "for people go to standard error.")] = False,
) -> None:  # fmt: skip
    """Train a recipe, or resume its run.

    Several processes: [bold]torchrun --nproc-per-node N -m seer_pipe train CONFIG …[/bold]

    Ctrl-C, SIGTERM and the end of a Slurm allocation commit a checkpoint first; the exit code is then 130.
    """
    from seer_pipe.recipes import load_recipe

    recipe = load_recipe(config, [*(overrides or []), *(change or [])])
    if show:
        from seer_pipe.describe import resolved

        print(resolved(recipe), end="")
        return
    from seer_pipe.cli.progress import watching
    from seer_pipe.run import start

    run = out or Path("runs") / recipe.name
    with watching(as_json) as (say, on_event):
        finished = start(recipe, run, say, on_event=on_event, fresh=fresh, init_from=init_from,
                         on_purpose=changed_keys(change))  # fmt: skip
    if not as_json:
        then = f"seer-pipe report {run}" if finished else "the same command resumes it"
        conclude(f"{run}: {'trained' if finished else 'stopped'}", then)
    raise typer.Exit(0 if finished else 130)
