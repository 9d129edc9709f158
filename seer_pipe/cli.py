"""The command ``seer-pipe``: one thin function a verb."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from seer_pipe.errors import UserError

app = typer.Typer(
    help="Pretrain a vision backbone on uncurated images, and take it elsewhere.",
    no_args_is_help=True, add_completion=True, pretty_exceptions_enable=False, rich_markup_mode="rich",
)  # fmt: skip
evaluate = typer.Typer(help="What the features of a run or an export are worth.", no_args_is_help=True)
app.add_typer(evaluate, name="eval")

ConfigArgument = Annotated[Path, typer.Argument(help="A recipe, e.g. configs/quickstart.yaml")]
Overrides = Annotated[list[str] | None, typer.Argument(help="Settings to change: key.path=value")]
FULL = {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}  # no room for what is to be written
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object instead of lines for people.")]


@app.command()
def train(
    config: ConfigArgument,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default runs/NAME.")] = None,
) -> None:
    """Train a recipe, or go on where its run was stopped.

    Several processes: [bold]torchrun --nproc-per-node N -m seer_pipe train CONFIG …[/bold]
    """
    from seer_pipe import config as settings
    from seer_pipe.train.loop import train as train_run

    recipe = settings.load(config, overrides or [])
    finished = train_run(recipe, out or Path("runs") / recipe.name)
    raise typer.Exit(0 if finished else 130)


@evaluate.command()
def knn(
    subject: Annotated[Path, typer.Argument(help="A run's folder, or an exported backbone's.")],
    data: Annotated[str, typer.Option(help="Shard set with the images.")],
    labels: Annotated[str, typer.Option(help="CSV file (source,label), or 'folder': an image's folder is its class.")],
    queries: Annotated[str | None, typer.Option(help="Shard set to classify, if another one.")] = None,
    k: Annotated[int, typer.Option(min=1, help="Neighbours that vote.")] = 20,
    temperature: Annotated[float, typer.Option(min=0.001, help="Of the votes' weights.")] = 0.07,
    untrained: Annotated[bool, typer.Option(help="The run's first weights instead of its last.")] = False,
    as_json: AsJson = False,
) -> None:
    """Classify images by their nearest neighbours among the features of labelled ones."""
    from seer_pipe.evaluate.verbs import evaluate_knn

    show(evaluate_knn(subject, data, labels, queries, k=k, temperature=temperature, untrained=untrained), as_json)


@evaluate.command()
def retrieval(
    subject: Annotated[Path, typer.Argument(help="A run's folder, or an exported backbone's.")],
    data: Annotated[str, typer.Option(help="Shard set with the images.")],
    untrained: Annotated[bool, typer.Option(help="The run's first weights instead of its last.")] = False,
    as_json: AsJson = False,
) -> None:
    """Find an image's other half among all images' other halves: needs no labels."""
    from seer_pipe.evaluate.verbs import evaluate_retrieval

    show(evaluate_retrieval(subject, data, untrained=untrained), as_json)


@evaluate.command()
def neighbours(
    run: Annotated[Path, typer.Argument(help="A run's folder.")],
    data: Annotated[str, typer.Option(help="Shard set with the images.")],
    out: Annotated[Path, typer.Option(help="PNG file to write.")],
) -> None:
    """Draw images with their nearest neighbours, under the run's first weights and under its last."""
    from seer_pipe.evaluate.sheet import draw_neighbours

    draw_neighbours(run, data, out)
    print(out)


@app.command()
def export(
    run: Annotated[Path, typer.Argument(help="The run's folder.")],
    out: Annotated[Path, typer.Option(help="New folder for the backbone.")],
    format: Annotated[str, typer.Option(help="torchvision, timm, huggingface, detectron2 or full.")] = "torchvision",
) -> None:
    """Write the newest checkpoint's trunk for another library, load it back, and compare its features."""
    from seer_pipe.evaluate.verbs import export_run

    export_run(run, out, format)
    print(out)


@app.command()
def quickstart(
    out: Annotated[Path, typer.Option(help="Folder for all that is made; it is replaced.")] = Path("quickstart"),
    images: Annotated[Path | None, typer.Option(help="Folder of pictures; by default a small web is drawn.")] = None,
    config: Annotated[Path, typer.Option(help="Recipe.")] = Path("configs/quickstart.yaml"),
    seed: Annotated[int, typer.Option(min=0, help="Of the drawn web and of the training.")] = 0,
) -> None:
    """The whole way in a few minutes: ingest, train, kill, resume, evaluate, export, reload."""
    from seer_pipe.quickstart.walk import walk

    walk(out, images, config, seed)


def main() -> None:
    """Run the command line; bad input is one line on stderr and exit code 2."""
    run_cli(app)


def run_cli(cli: typer.Typer) -> None:
    try:
        cli()
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except BrokenPipeError:  # the reader of our output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        if error.errno not in FULL:
            raise
        print(f"error: {error.filename or 'disk'}: {error.strerror}; make room and run the same command again",
              file=sys.stderr)  # fmt: skip
        sys.exit(2)


def show(result: dict[str, Any], as_json: bool) -> None:
    """Print a result, a line a value or as JSON."""
    if as_json:
        print(json.dumps(result))
        return
    for name, value in result.items():
        print(f"{name.replace('_', ' ')}: {f'{value:.4f}' if isinstance(value, float) else value}")
