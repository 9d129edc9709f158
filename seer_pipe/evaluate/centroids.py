"""The file of centroids that k-means of features leaves: [K, width], and what they are of."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from seer_pipe.errors import UserError
from seer_pipe.export.weights import read_weights

FILE = "centroids.safetensors"


class Centroids(NamedTuple):
    matrix: Tensor  # [K, width], of unit length where spherical
    spherical: bool


def read_centroids(folder: Path, weights: str) -> Centroids:
    """The centroids of an atlas, or of what `cluster_set` made, by k-means of the features of these weights."""
    file = folder / FILE
    if not file.is_file():
        raise UserError(
            f"{folder}: no atlas whose clusters are by k-means (no {file.name}); seer-pipe atlas or cluster makes it"
        )
    tensors, about = read_weights(file)
    if about.get("weights") != weights:
        raise UserError(f"{folder}: an atlas of other weights; draw it again with seer-pipe atlas")
    return Centroids(tensors["centroids"], about.get("spherical") != "False")
