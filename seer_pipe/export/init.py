"""A public checkpoint as a backbone of ours, to evaluate, to embed with, or to train on from."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import torch

from seer_pipe.export.folder import export_backbone
from seer_pipe.export.names import names_in, namings
from seer_pipe.export.weights import Loaded, load_weights, read_weights, strip_prefixes
from seer_pipe.models import Trunk, build_trunk, trunk_names
from seer_pipe.models.build import Stem
from seer_pipe.models.resnet import RESNETS


def init_backbone(source: Path, out: Path) -> tuple[Trunk, Loaded]:
    """Write the trunk in the checkpoint ``source`` to the new folder ``out``, which `load_backbone` reads.

    ``source``: a file or folder of torchvision, timm, Transformers, detectron2, VISSL (SEER) or SwAV. Its trunk is
    the one that has the most of its tensors; any other difference than a head is a `UserError` that lists it.
    """
    tensors, _ = read_weights(source)
    shapes = {name: tensor.shape for name, tensor in strip_prefixes(tensors).items()}
    del tensors
    trunk = nearest_trunk(shapes).to_empty(device="cpu")
    loaded = load_weights(trunk, source)
    export_backbone(
        trunk,
        out,
        images=torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)),
        metadata={"source": source.name, "source_names": loaded.library},
        origin=f"made of {source.name}",
    )
    return trunk, loaded


def nearest_trunk(shapes: dict[str, torch.Size]) -> Trunk:
    """The trunk, on the meta device, of which most tensors are there by name (any library's) and shape."""
    found = set(shapes.items())
    known = _known()
    # of two that have as many, the one that lacks less
    name, stem = max(known, key=lambda trunk: max((len(found & tensors), -len(tensors)) for tensors in known[trunk]))
    with torch.device("meta"):
        return build_trunk(name, stem=stem)


@cache
def _known() -> dict[tuple[str, Stem], list[frozenset[tuple[str, torch.Size]]]]:
    """(name, shape) of all tensors of every trunk, by its name and stem: one set for each library's names."""
    known: dict[tuple[str, Stem], list[frozenset[tuple[str, torch.Size]]]] = {}
    trunks: list[tuple[str, Stem]] = [(name, "imagenet") for name in trunk_names()]
    for name, stem in trunks + [(name, "small") for name in RESNETS]:
        with torch.device("meta"):
            trunk = build_trunk(name, stem=stem)
        state = trunk.state_dict()
        names = [names_in(trunk, library) for library in namings(trunk)]
        known[name, stem] = [frozenset((n[key], tensor.shape) for key, tensor in state.items()) for n in names]
    return known
