"""The command ``seer-pipe``: one file per group of verbs, one thin function per verb."""

from __future__ import annotations

import typer

from seer_pipe.cli import (
    config,
    curate,
    data,
    doctor,
    embed,
    evaluate,
    export,
    launch,
    quickstart,
    report,
    show,
    tracks,
    train,
    vocabulary,
)
from seer_pipe.cli.common import run_cli

ABOUT = """Pretrain a vision backbone on uncurated images, and take it elsewhere.

[bold]seer-ingest[/bold] makes a shard set of images. A recipe, a name or a YAML file, says how to train on it. A run \
is a folder. Any of these commands may be given again after a crash, a kill or Ctrl-C: it continues where it stopped.

\b
[bold]seer-ingest folder ~/pictures --out data/pictures
seer-pipe train quickstart data.path=data/pictures --out runs/pictures
seer-pipe eval knn runs/pictures --data data/pictures --labels folder
seer-pipe export runs/pictures --out backbone --format timm
seer-pipe report runs/pictures[/bold]

Any setting of a recipe is changed by [bold]section.key=value[/bold]; durations are in images. With \
[bold]--json[/bold] a verb's result is an object for programs. [bold]seer-pipe VERB --help[/bold] lists all options.
"""
ENDS = """Exit codes: 0 done; 1 doctor found something, or a fault of the program; 2 bad input, reported in one line; \
130 stopped before the end, after a checkpoint; 141 the reader of the output went away.

Environment: AWS_ENDPOINT_URL and what else boto3 reads, for s3://bucket/prefix; SEER_PIPE_CLUSTER, a file of defaults \
for launch; OMP_NUM_THREADS, the threads of a training on a CPU.
"""
#: The verbs as the help has them.
PANELS = {
    "Start": (quickstart,),
    "Data": (data, curate, vocabulary, tracks),
    "Training": (config, doctor, train),
    "Cluster": (launch,),
    "Evaluation and export": (evaluate, embed, export),
    "Looking": (show, report),
}

app = typer.Typer(
    help=ABOUT, epilog=ENDS, no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)  # fmt: skip
for panel, rooms in PANELS.items():
    for room in rooms:
        for verb in (*room.verbs.registered_commands, *room.verbs.registered_groups):
            verb.rich_help_panel = panel
        app.add_typer(room.verbs)


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    run_cli(app)
