"""A public checkpoint as a backbone of ours, to evaluate, to embed with, or to train on from."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import torch

from seer_pipe.export.folder import export_backbone
from seer_pipe.export.match import Loaded, load_weights, nearest_trunk
from seer_pipe.export.origin import origin
from seer_pipe.export.preprocess import Preprocessing
from seer_pipe.export.weights import read_weights
from seer_pipe.models import Trunk


def init_backbone(source: Path, out: Path) -> tuple[Trunk, Loaded]:
    """Write the trunk in the checkpoint ``source`` to the new folder ``out``, which `load_backbone` reads.

    ``source``: a file or folder as `load_weights` takes it. Its trunk is the one that has the most of its tensors;
    any other difference than a head is a `UserError` that lists it.
    """
    tensors, _ = read_weights(source)
    shapes = {name: tensor.shape for name, tensor in tensors.items()}
    del tensors
    trunk = nearest_trunk(shapes, source).to_empty(device="cpu")
    loaded = load_weights(trunk, source)
    about = origin(source)
    prepared = Preprocessing(size=112, frames=(16, 15.0)) if trunk.takes_clips else Preprocessing()  # torchvision's
    metadata = {"source": about.name, "source_sha256": about.sha256, "source_names": loaded.library,
                "licence": about.licence or "unknown"}  # fmt: skip
    metadata |= {"method": about.method} if about.method else {}
    export_backbone(
        trunk,
        out,
        images=torch.randn(2, *replace(prepared, size=64).shape, generator=torch.Generator().manual_seed(0)),
        metadata=metadata,
        preprocessing=prepared,
        origin=f"made of {source.name}",
        self_supervised=about.method is not None,
        licence=about.licence,
    )
    return trunk, loaded
