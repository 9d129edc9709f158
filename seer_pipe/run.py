"""A run with all that the rooms above training put into it: first weights, rehearsal of the export, kNN probe."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from seer_pipe import config as settings
from seer_pipe.config import Config
from seer_pipe.evaluate.probe import KnnProbe
from seer_pipe.evaluate.subject import load_run
from seer_pipe.export import export_backbone, load_weights
from seer_pipe.export.origin import origin
from seer_pipe.models import build_trunk
from seer_pipe.train.events import OnEvent
from seer_pipe.train.loop import train
from seer_pipe.train.trainer import Hooks, Say

#: Trunks of more parameters are not built whole, on one process, for a rehearsal.
REHEARSED = 2_000_000_000


def start(
    config: Config, run: Path, say: Say = print, *, on_event: OnEvent | None = None, fresh: bool = False,
    init_from: Path | None = None, on_purpose: Collection[str] = (),
) -> bool:  # fmt: skip
    """As `seer_pipe.train.loop.train`, for the command line and for jobs; ``init_from``: weights of the trunk."""
    size = config.views.largest
    hooks = Hooks(
        initialise=(lambda trunk: load_weights(trunk, init_from)) if init_from else None,
        init=asdict(origin(init_from)) if init_from else None,
        rehearse=_rehearse_export,
        probe=KnnProbe(config.probe, size, config.views.clip, config.data.threads) if config.probe else None,
        on_event=on_event,
    )
    return train(config, run, say, hooks=hooks, fresh=fresh, on_purpose=on_purpose)


def _rehearse_export(run: Path) -> None:
    """Export the first checkpoint, load it back, and remove it again."""
    config = settings.load(run / "config.yaml")
    with torch.device("meta"):
        trunk = build_trunk(config.model.name, stem=config.model.stem)
    if sum(parameter.numel() for parameter in trunk.parameters()) > REHEARSED:
        return
    subject = load_run(run)[0]
    images = torch.randn(2, *subject.shown.shape, generator=torch.Generator().manual_seed(0))
    with TemporaryDirectory(dir=run, prefix=".rehearsal-") as folder:
        format, head = ("torchvision", None) if "torchvision" in subject.trunk.namings else ("full", subject.head)
        export_backbone(
            subject.trunk, Path(folder, "backbone"), format=format, head=head, images=images, metadata={},
            preprocessing=subject.shown,
        )  # fmt: skip
