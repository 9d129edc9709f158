"""Training."""

from __future__ import annotations

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Annotated

import typer

from seer_pipe.cli.common import ConfigArgument, Overrides

verbs = typer.Typer()


@verbs.command()
def train(
    config: ConfigArgument,
    overrides: Overrides = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default runs/NAME.")] = None,
    fresh: Annotated[bool, typer.Option(help="Begin anew; a run that is there is moved aside, not removed.")] = False,
    init_from: Annotated[Path | None, typer.Option(help="First weights of the trunk: an export of ours, or a file of "
                                                        "torchvision, timm, Transformers, SEER or SwAV.")] = None,
) -> None:  # fmt: skip
    """Train a recipe, or go on where its run was stopped.

    Several processes: [bold]torchrun --nproc-per-node N -m seer_pipe train CONFIG …[/bold]
    """
    from seer_pipe.evaluate.probe import KnnProbe
    from seer_pipe.export import load_weights
    from seer_pipe.recipes import load_recipe
    from seer_pipe.train.loop import Hooks
    from seer_pipe.train.loop import train as train_run

    recipe = load_recipe(config, overrides or [])
    size = max(crop.size for crop in recipe.views.crops)
    hooks = Hooks(
        initialise=(lambda trunk: load_weights(trunk, init_from)) if init_from else None,
        rehearse=_rehearse_export,
        probe=KnnProbe(recipe.probe, size, recipe.data.threads) if recipe.probe else None,
    )
    finished = train_run(recipe, out or Path("runs") / recipe.name, hooks=hooks, fresh=fresh)
    raise typer.Exit(0 if finished else 130)


#: Trunks of more parameters are not built whole, on one process, for a rehearsal.
REHEARSED = 2_000_000_000


def _rehearse_export(run: Path) -> None:
    """Export the first checkpoint, load it back, and remove it again."""
    import torch

    from seer_pipe import config as settings
    from seer_pipe.evaluate.subject import load_run
    from seer_pipe.export import export_backbone
    from seer_pipe.models import build_trunk

    recipe = settings.load(run / "config.yaml")
    with torch.device("meta"):
        trunk = build_trunk(recipe.model.name, stem=recipe.model.stem)
    if sum(parameter.numel() for parameter in trunk.parameters()) > REHEARSED:
        return
    subject = load_run(run)[0]
    images = torch.randn(2, 3, subject.size, subject.size, generator=torch.Generator().manual_seed(0))
    with TemporaryDirectory(dir=run, prefix=".rehearsal-") as folder:
        export_backbone(subject.trunk, Path(folder, "backbone"), images=images, metadata={})
