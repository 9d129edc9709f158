"""A run's trunk as a backbone for others, with what is known of it."""

from __future__ import annotations

from pathlib import Path

import torch

from seer_pipe import config as settings
from seer_pipe.errors import UserError
from seer_pipe.evaluate.pictures import ShardPictures
from seer_pipe.evaluate.results import kept
from seer_pipe.evaluate.subject import Subject, load_run, open_data_of, recalibrate
from seer_pipe.export import FORMATS, export_backbone

COMPARED = 8  # images


def export_run(
    run: Path, out: Path, format: str = "torchvision", *, with_recalibration: bool = False, data: str | None = None,
    onnx: bool = False,
) -> None:  # fmt: skip
    """Export the trunk of a run's newest checkpoint, which needs nothing but the run's folder.

    ``with_recalibration``: with the BatchNorm statistics of whole images instead of the mixed crops' of training; of
    the shard set ``data``, by default the one that the run was trained on.
    """
    if format not in FORMATS:
        raise UserError(f"no export format {format!r}: choose {', '.join(FORMATS)}")
    if data and not with_recalibration:
        raise UserError("--data: an export without --recalibrate looks at no images")
    subject, config, network = load_run(run)
    record = settings.read_record(run / "config.yaml")
    has_batch_norm = subject.trunk.norm_kind == "batch"
    if with_recalibration and not has_batch_norm:
        raise UserError("--recalibrate: this trunk has LayerNorm (model.norm), which keeps no statistics; leave it out")
    if with_recalibration:
        recalibrate(subject, ShardPictures(open_data_of(run, data)))
    pixels = torch.randn(COMPARED, *subject.shown.shape, generator=torch.Generator().manual_seed(0))
    full = format == "full"
    metadata = {"images_seen": str(subject.images), "method": config.objective.name, "run": config.name}
    if has_batch_norm:
        metadata |= {"batch_norm": "recalibrated" if with_recalibration else "of training"}
    began, supervised = "", False
    if record.init is not None:
        init = {name: value or "unknown" for name, value in record.init.items()}
        metadata |= {"initial_weights" + ("" if name == "name" else f"_{name}"): value for name, value in init.items()}
        began, supervised = f", from the weights of {init['name']}", record.init["method"] is None
    if full:
        metadata |= {"objective": config.objective.model_dump_json()}
        if config.views.sound is not None:
            metadata |= {"sound": config.views.sound.model_dump_json()}
    export_backbone(
        subject.trunk,
        out,
        format=format,
        images=pixels,
        metadata=metadata,
        preprocessing=subject.shown,
        sections=_sections(run, config, record, subject, with_recalibration),
        head=network.head if full else None,
        onnx=onnx,
        origin=f"trained by seer_pipe on {_seen(subject)} without labels{began}",
        self_supervised=not supervised,
    )


def _seen(subject: Subject) -> str:
    return "clips" if subject.trunk.takes_clips else "images"


def _sections(
    run: Path, config: settings.Config, record: settings.Record, subject: Subject, recalibrated: bool
) -> dict[str, str]:
    """What the model card says of the run: data, recipe, what was changed on the way, and what was measured."""
    sets = len(config.data.paths)
    crops = " + ".join(
        f"{crop.count}x{crop.size} px of {crop.scale}" + (f" in a {crop.layout}" if crop.patched else "")
        for crop in config.views.crops
    )
    optimizer, seen = config.optimizer, _seen(subject)
    sections = {
        "Data": f"{subject.state['derived']['images_in_set']:,} {seen} without labels"
        + (f" in {sets} sets" if sets > 1 else "")
        + f"; fingerprint of the data `{subject.state['shards'][:16]}`. "
        + f"{subject.images:,} {seen} were seen in training.",
        "Recipe": f"`{config.name}`: {config.objective.name}, {config.train.batch} {seen} per step, crops {crops}; "
        f"{optimizer.name}, learning rate {optimizer.lr:g} for a batch of 256, "
        f"{optimizer.schedule} schedule, weight decay {optimizer.weight_decay:g}; seed {config.seed}."
        + (" BatchNorm statistics are those of whole images." if recalibrated else ""),
    }
    if record.changes:
        sections["Changes"] = "\n".join(
            f"- after step {change['step']:,} ({change['images']:,} images): "
            + ", ".join(f"`{key}` {old} -> {new}" for key, (old, new) in change["settings"].items())
            for change in record.changes
        )
    rows = [(name, result) for name, result in kept(run).items() if "accuracy" in result]
    if rows:
        table = "\n".join(f"| {name} | {r['accuracy']:.4f} | {r['images_seen']:,} |" for name, r in rows)
        sections["Evaluation"] = f"| evaluation | accuracy | images seen |\n|---|---|---|\n{table}"
    return sections
