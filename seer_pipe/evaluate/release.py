"""A run's trunk as a backbone for others, with what is known of it."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from seer_pipe import config as settings
from seer_pipe.errors import UserError
from seer_pipe.evaluate.features import Images
from seer_pipe.evaluate.pictures import ShardPictures
from seer_pipe.evaluate.results import kept
from seer_pipe.evaluate.subject import Subject, load_run, recalibrate
from seer_pipe.export import FORMATS, Preprocessing, export_backbone
from seer_pipe.shards import ShardSet

COMPARED = 8  # images


def export_run(
    run: Path, out: Path, format: str = "torchvision", *, with_recalibration: bool = False, onnx: bool = False
) -> None:
    """Export the trunk of a run's newest checkpoint, compared on images of its own data.

    ``with_recalibration``: with the BatchNorm statistics of whole images instead of the mixed crops' of training.
    """
    if format not in FORMATS:
        raise UserError(f"no export format {format!r}: choose {', '.join(FORMATS)}")
    subject, config, network = load_run(run)
    shards = ShardSet.open(config.data.paths[0])
    pictures = ShardPictures(shards)
    if with_recalibration:
        recalibrate(subject, pictures)
    images = Images(pictures, subject.size, batch=COMPARED)
    try:
        spread = np.linspace(0, len(pictures) - 1, COMPARED).astype(np.int64)
        _, pixels = next(images.batches(np.unique(spread)))
    finally:
        images.close()
    full = format == "full"
    metadata = {"images_seen": str(subject.images), "method": config.objective.name, "run": config.name}
    metadata |= {"batch_norm": "recalibrated" if with_recalibration else "of training"}
    if full:
        metadata |= {"temperature": str(subject.temperature)}
    export_backbone(
        subject.trunk,
        out,
        format=format,
        images=pixels,
        metadata=metadata,
        preprocessing=Preprocessing(size=subject.size),
        sections=_sections(run, config, shards, subject, with_recalibration),
        head=network.head if full else None,
        onnx=onnx,
    )


def _sections(
    run: Path, config: settings.Config, shards: ShardSet, subject: Subject, recalibrated: bool
) -> dict[str, str]:
    """What the model card says of the run: data, recipe, and what was measured."""
    others = len(config.data.paths) - 1
    crops = " + ".join(f"{crop.count}x{crop.size} px of {crop.scale}" for crop in config.views.crops)
    optimizer = config.optimizer
    sections = {
        "Data": f"{len(shards):,} images without labels in {len(shards.paths)} shards"
        + (f", and {others} more sets" if others else "")
        + f"; fingerprint of the set `{shards.fingerprint[:16]}`. {subject.images:,} images were seen in training.",
        "Recipe": f"`{config.name}`: {config.objective.name}, {config.train.batch} images a step, crops {crops}; "
        f"{optimizer.name}, learning rate {optimizer.lr:g} for a batch of 256, "
        f"{optimizer.schedule} schedule, weight decay {optimizer.weight_decay:g}; seed {config.seed}."
        + (" BatchNorm statistics are those of whole images." if recalibrated else ""),
    }
    rows = [(name, result) for name, result in kept(run).items() if "accuracy" in result]
    if rows:
        table = "\n".join(f"| {name} | {r['accuracy']:.4f} | {r['images_seen']:,} |" for name, r in rows)
        sections["Evaluation"] = f"| evaluation | accuracy | images seen |\n|---|---|---|\n{table}"
    return sections
