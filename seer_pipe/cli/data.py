"""The data of a run: what stands where, and how fast it comes."""

from __future__ import annotations

import json
from typing import Annotated

import typer

from seer_pipe.cli.common import AsJson, ConfigArgument, Overrides, show

SHOWN = 16  # images, where a person reads

data = typer.Typer(help="What a run reads.", no_args_is_help=True)
bench = typer.Typer(help="How fast the parts are on this machine.", no_args_is_help=True)
verbs = typer.Typer()
verbs.add_typer(data, name="data")
verbs.add_typer(bench, name="bench")


@data.command()
def inspect(
    config: ConfigArgument,
    overrides: Overrides = None,
    step: Annotated[int, typer.Option(min=0, help="From 0.")] = 0,
    rank: Annotated[int, typer.Option(min=0, help="Whose images are shown.")] = 0,
    world: Annotated[int, typer.Option(min=1, help="Number of ranks.")] = 1,
    as_json: AsJson = False,
) -> None:
    """What a step reads: the epoch of every source, and the images that a rank gets."""
    from seer_pipe.data.bench import inspect as look
    from seer_pipe.recipes import load_recipe

    recipe = load_recipe(config, overrides or [])
    found = look(recipe.data, recipe.train.batch, recipe.seed, step, rank, world)
    if as_json:
        print(json.dumps(found))
        return
    images, sources = found.pop("images"), found.pop("sources")
    for source in sources:
        print("{path}: {images} images in {shards} shards, {gigabytes} GB, {excluded} excluded, {repeated} repeated; "
              "{images_per_batch} per batch; epoch {epoch}, "
              "step {step_of_epoch} of {steps_per_epoch}; {left_out_per_epoch} skipped per epoch"
              .format(**source))  # fmt: skip
    show(found, as_json)
    print(f"{'slot':>6} {'sample':>12}  shard, index")
    for image in images[:SHOWN]:
        print("{slot:6} {sample:12}  {shard}, {index}".format(**image))
    if len(images) > SHOWN:
        print(f"… {len(images) - SHOWN} more; --json has them all")


@bench.command(name="data")
def bench_data(
    config: ConfigArgument,
    overrides: Overrides = None,
    world: Annotated[int, typer.Option(min=1, help="Number of ranks; the first one's share is read.")] = 1,
    seconds: Annotated[float, typer.Option(min=0.0, help="To measure each part for.")] = 5.0,
    as_json: AsJson = False,
) -> None:
    """Measure the stream alone, decoding and cropping alone, and both together; say which part limits."""
    import torch

    from seer_pipe.data.bench import bench as measure
    from seer_pipe.recipes import load_recipe
    from seer_pipe.train.build import build_crops

    recipe = load_recipe(config, overrides or [])
    device = recipe.train.device
    if device == "auto":
        device = "cuda" if torch.cuda.is_available() else "cpu"
    crops = build_crops(recipe)
    measured = measure(
        recipe.data, crops, recipe.views.sound, recipe.views.frames, recipe.train.batch, recipe.seed, world=world,
        device=device, seconds=seconds,
    )  # fmt: skip
    show(measured, as_json)
