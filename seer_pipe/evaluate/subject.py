"""What is evaluated: the trunk of a run, of an export, or one that was never trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seer_pipe import config as settings
from seer_pipe.data.order import Ints
from seer_pipe.errors import UserError
from seer_pipe.evaluate.features import Images
from seer_pipe.evaluate.pictures import Pictures
from seer_pipe.export import load_backbone, recalibrate_batch_norm
from seer_pipe.export.weights import read_weights
from seer_pipe.models import Trunk
from seer_pipe.objectives.base import Network
from seer_pipe.objectives.swav import SwavHead
from seer_pipe.shards import ShardSet
from seer_pipe.train.build import build_network
from seer_pipe.train.checkpoint import Checkpoints, store_of

#: BatchNorm statistics are taken over so many images, spread over the set.
RECALIBRATED_ON = 4096


@dataclass(frozen=True)
class Subject:
    trunk: Trunk
    size: int  # pixels of its largest training crop
    images: int  # that it was trained on
    head: SwavHead | None = None  # its prototypes, where it comes with them
    temperature: float = 0.1  # of the softmax over their scores
    state: Mapping[str, Any] = field(default_factory=dict)  # of a run's checkpoint, beside its tensors

    @property
    def digest(self) -> str:
        """SHA-256 of all weights: says whether two subjects give the same features and prototypes."""
        digest = hashlib.sha256()
        for module in (self.trunk, self.head):
            for name, tensor in module.state_dict().items() if module else ():
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_run(run: Path, *, untrained: bool = False) -> tuple[Subject, settings.Config, Network]:
    """The trunk of a run's newest checkpoint, or its first weights; the run's config, and trunk with head."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run's folder (no config.yaml)")
    config = settings.load(run / "config.yaml")
    network, trunk = build_network(config)
    size = max(crop.size for crop in config.views.crops)
    if untrained:
        return Subject(trunk, size, 0), config, network
    found = Checkpoints(store_of(run)).latest(print)
    if found is None:
        raise UserError(f"{run}: no checkpoint yet; train it first, or use --untrained")
    network.load_state_dict(found.network)
    head = network.head if isinstance(network.head, SwavHead) else None
    subject = Subject(trunk, size, found.state["images"], head, config.objective.temperature, found.state)
    return subject, config, network


def open_data_of(run: Path, data: str | None = None) -> ShardSet:
    """The shard set ``data``, by default the first that the run was trained on, which may have moved since."""
    if data is not None:
        return ShardSet.open(data)
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run's folder (no config.yaml)")
    try:
        return ShardSet.open(settings.load(run / "config.yaml").data.paths[0])
    except UserError as error:
        raise UserError(f"{error}; --data says where the run's shard set is now") from None


def load_subject(path: Path, *, untrained: bool = False, device: torch.device | str = "cpu") -> Subject:
    """A run's folder, or an exported backbone's, on the device and in evaluation mode."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run's folder or an exported backbone's")
    if not untrained and any((path / name).is_file() for name in ("model.safetensors", "model.pth")):
        subject = _load_export(path)
    else:
        subject = load_run(path, untrained=untrained)[0]
    for module in filter(None, (subject.trunk, subject.head)):
        module.to(device).eval()
    return subject


def _load_export(folder: Path) -> Subject:
    tensors, about = read_weights(folder)
    head = {name.removeprefix("head."): tensor for name, tensor in tensors.items() if name.startswith("head.")}
    full = about.get("layout") == "full" and "prototypes.weight" in head
    return Subject(
        load_backbone(folder),
        json.loads(about["size"]),
        int(about.get("images_seen", 0)),
        _build_head(head) if full else None,
        float(about.get("temperature", Subject.temperature)),
    )


def _build_head(tensors: dict[str, torch.Tensor]) -> SwavHead:
    """The head whose tensors these are: their shapes say how it is made."""
    layers = [tensor for name, tensor in tensors.items() if name.startswith("projection.") and tensor.ndim == 2]
    dims = [layers[0].shape[1], *(layer.shape[0] for layer in layers)]
    head = SwavHead(dims, len(tensors["prototypes.weight"]), any("running_mean" in name for name in tensors))
    head.load_state_dict(tensors)
    return head


def recalibrate(subject: Subject, pictures: Pictures) -> None:
    """Give the trunk the BatchNorm statistics of these images, as the evaluations show them."""
    device = next(subject.trunk.parameters()).device
    images = Images(pictures, subject.size, device=str(device))
    numbers = spread(np.arange(len(pictures)))
    try:
        recalibrate_batch_norm(subject.trunk, (pixels for _, pixels in images.batches(numbers)))
    finally:
        images.close()


def spread(numbers: Ints) -> Ints:
    """As many of the images as BatchNorm statistics are taken over, from all of the set."""
    return numbers[np.unique(np.linspace(0, len(numbers) - 1, RECALIBRATED_ON).astype(np.int64))]
