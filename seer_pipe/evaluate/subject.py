"""What is evaluated: the trunk of a run, of an export, or one that was never trained; and the labels."""

from __future__ import annotations

import csv
import json
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import torch

from seer_pipe import config as settings
from seer_pipe.errors import UserError
from seer_pipe.export import load_backbone
from seer_pipe.export.weights import read_weights
from seer_pipe.models import Trunk
from seer_pipe.objectives.base import Network
from seer_pipe.shards import ShardSet
from seer_pipe.store import open_store
from seer_pipe.train.build import build_network
from seer_pipe.train.checkpoint import Checkpoints


@dataclass(frozen=True)
class Subject:
    trunk: Trunk
    size: int  # pixels of its largest training crop
    images: int  # that it was trained on


def load_run(run: Path, *, untrained: bool = False) -> tuple[Subject, settings.Config, Network]:
    """The trunk of a run's newest checkpoint, or its first weights; the run's config, and trunk with head."""
    if not (run / "config.yaml").is_file():
        raise UserError(f"{run}: not a run's folder (no config.yaml)")
    config = settings.load(run / "config.yaml")
    network, trunk = build_network(config)
    size = max(crop.size for crop in config.views.crops)
    if untrained:
        return Subject(trunk, size, 0), config, network
    found = Checkpoints(open_store(run / "checkpoints")).latest(print)
    if found is None:
        raise UserError(f"{run}: no checkpoint yet; train it first, or use --untrained")
    network.load_state_dict(found.network)
    return Subject(trunk, size, found.state["images"]), config, network


def load_subject(path: Path, *, untrained: bool = False) -> Subject:
    """A run's folder, or an exported backbone's."""
    if not path.is_dir():
        raise UserError(f"{path}: no such folder; give a run's folder or an exported backbone's")
    if (path / "model.safetensors").is_file() and not untrained:
        _, about = read_weights(path)
        return Subject(load_backbone(path), json.loads(about["size"]), int(about.get("images_seen", 0)))
    return load_run(path, untrained=untrained)[0]


def read_labels(shards: ShardSet, labels: str) -> tuple[torch.Tensor, list[str]]:
    """The class of each sample of the set, [n] int64, -1 where it has none; and the classes' names.

    ``labels``: a CSV file with the columns source and label; or ``folder``, where the folder that an image's
    source lies in is its class.
    """
    sources = [s for i in range(len(shards.counts)) for s in shards.sidecar(i, ["source"])["source"].to_pylist()]
    if labels == "folder":
        named = {source: PurePosixPath(source).parent.name for source in sources}
    else:
        try:
            with Path(labels).open(newline="") as file:
                rows = list(csv.DictReader(file))
            named = {row["source"]: row["label"] for row in rows}
        except OSError as error:
            raise UserError(f"{labels}: {error.strerror}") from None
        except (KeyError, csv.Error, UnicodeDecodeError):
            raise UserError(f"{labels}: not a CSV file with the columns source,label") from None
    found = [named.get(source, "") for source in sources]
    names = sorted(set(found) - {""})
    if len(names) < 2:
        raise UserError(f"{labels}: names {len(names)} classes for the {len(found)} images; at least 2 are needed")
    numbers = {name: number for number, name in enumerate(names)}
    return torch.tensor([numbers.get(name, -1) for name in found]), names
