"""What is evaluated: the trunk of a run, of an export, or one that was never trained."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from seer_pipe import config as settings
from seer_pipe.data.order import Ints
from seer_pipe.errors import UserError
from seer_pipe.evaluate.features import Images
from seer_pipe.evaluate.pictures import Pictures
from seer_pipe.export import Preprocessing, load_backbone, recalibrate_batch_norm
from seer_pipe.export.weights import read_weights
from seer_pipe.models import Trunk, build_trunk
from seer_pipe.objectives.base import Network
from seer_pipe.objectives.settings import Settings
from seer_pipe.shards import ShardSet
from seer_pipe.train.build import build_network
from seer_pipe.train.checkpoint import Checkpoints
from seer_pipe.train.committed import store_of

#: BatchNorm statistics are taken over so many images, spread over the set.
RECALIBRATED_ON = 4096


@dataclass(frozen=True)
class Subject:
    trunk: Trunk
    size: int  # pixels of its largest training crop
    images: int  # that it was trained on
    objective: Settings | None = None  # that it was trained by, where it comes with its head
    head: torch.nn.Module | None = None
    sound: settings.Sound | None = None  # that it hears beside a picture, where it does and comes with its head
    state: Mapping[str, Any] = field(default_factory=dict)  # of a run's checkpoint, beside its tensors
    frames: settings.Frames | None = None  # of a clip that it sees together, where it takes clips

    @property
    def shown(self) -> Preprocessing:
        """How images or clips are shown to it."""
        return Preprocessing(self.size, frames=None if self.frames is None else (self.frames.count, self.frames.fps))

    @property
    def clusters(self) -> int:
        """That its head names."""
        return self.objective.clusters if self.objective is not None else 0

    @property
    def digest(self) -> str:
        """SHA-256 of all weights: says whether two subjects give the same features and clusters."""
        digest = hashlib.sha256()
        for module in (self.trunk, self.head):
            for name, tensor in module.state_dict().items() if module else ():
                digest.update(name.encode())
                digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
        return digest.hexdigest()


def load_run(run: Path, *, untrained: bool = False) -> tuple[Subject, settings.Config, Network]:
    """The trunk of a run's newest checkpoint, or its first weights; the run's config, and the whole network."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run's folder (no config.yaml)")
    config = settings.load(run / "config.yaml")
    network = build_network(config)
    size, frames = config.views.largest, config.views.clip
    if untrained:
        return Subject(network.trunk, size, 0, frames=frames), config, network
    found = Checkpoints(store_of(run)).latest(print)
    if found is None:
        raise UserError(f"{run}: no checkpoint yet; train it first, or use --untrained")
    network.load_state_dict(found.network)
    images, sound = found.state["images"], config.views.sound
    subject = Subject(network.trunk, size, images, config.objective, network.head, sound, found.state, frames)
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
    trunk, size, images = load_backbone(folder), json.loads(about["size"]), int(about.get("images_seen", 0))
    frames = None
    if "frames" in about:
        count, fps = json.loads(about["frames"])
        frames = settings.Frames(count=count, fps=fps, joined=True)
    if not head or "objective" not in about:
        return Subject(trunk, size, images, frames=frames)
    objective = settings.parse_objective(json.loads(about["objective"]), str(folder))
    with torch.device("meta"):
        network = objective.network(lambda: build_trunk(trunk.name, stem=trunk.stem_kind))
    network.head.to_empty(device="cpu")
    network.head.load_state_dict(head)
    sound = settings.parse_sound(json.loads(about["sound"]), str(folder)) if "sound" in about else None
    return Subject(trunk, size, images, objective, network.head, sound, frames=frames)


class Hearing(NamedTuple):
    """What a subject that hears has beside its trunk."""

    objective: Settings
    head: torch.nn.Module
    sound: settings.Sound  # how sounds are given to it


def hearing(subject: Subject, path: Path) -> Hearing:
    """UserError where the subject hears nothing."""
    if subject.objective is None or subject.head is None or subject.sound is None:
        raise UserError(f"{path}: hears nothing; give a run whose recipe has views.sound, or its export as full")
    return Hearing(subject.objective, subject.head, subject.sound)


def recalibrate(subject: Subject, pictures: Pictures) -> None:
    """Give the trunk the BatchNorm statistics of these images, as the evaluations show them."""
    device = next(subject.trunk.parameters()).device
    images = Images(pictures, subject.size, subject.frames, device=str(device))
    numbers = sample_evenly(np.arange(len(pictures)))
    try:
        recalibrate_batch_norm(subject.trunk, (pixels for _, pixels in images.batches(numbers)))
    finally:
        images.close()


def sample_evenly(numbers: Ints) -> Ints:
    """As many of the images as BatchNorm statistics are taken over, from all of the set."""
    return numbers[np.unique(np.linspace(0, len(numbers) - 1, RECALIBRATED_ON).astype(np.int64))]
