"""The clusters that images belong to: by the objective's head, or by the centroids of an atlas."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from seer_pipe.distributed.kmeans import nearest
from seer_pipe.distributed.world import join
from seer_pipe.errors import UserError
from seer_pipe.evaluate.centroids import Centroids, read_centroids
from seer_pipe.evaluate.features import Images
from seer_pipe.evaluate.pictures import SUFFIXES, FilePictures
from seer_pipe.evaluate.subject import Subject, load_subject


@dataclass(frozen=True)
class Assigned:
    """The cluster of each image, [n] int32, and how surely, [n] float32: the share that it has of it where the head
    names the clusters, else the cosine to the centroid, or minus the squared distance."""

    cluster: Tensor
    confidence: Tensor


@torch.no_grad()
def assign(subject: Subject, features: Tensor, centroids: Centroids | None = None) -> Assigned | None:
    """The clusters of features [n, width] on the subject's device; None where its head names none.

    ``centroids``: those to be nearest to instead.
    """
    if centroids is not None:
        cluster, score = nearest(features, centroids.matrix.to(features.device), spherical=centroids.spherical)
        return Assigned(cluster.int().cpu(), score.cpu())
    if subject.objective is None or subject.head is None or not subject.clusters:
        return None
    confidence, cluster = subject.objective.shares(subject.head, features).max(dim=1)
    return Assigned(cluster.int().cpu(), confidence.float().cpu())


def assign_files(path: Path, images: list[Path], atlas: Path | None = None) -> Iterator[dict[str, Any]]:
    """The cluster of each image file, or of those in folders: file, cluster, confidence; or the reason why it has none.

    ``atlas``: folder of an atlas of these weights whose clusters are by k-means, or of ``seer-pipe cluster``; by
    default the head's.
    """
    files: list[Path] = []
    for place in images:
        if not place.exists():
            raise UserError(f"{place}: no such file or folder")
        inside = sorted(f for f in place.rglob("*") if f.suffix.lower() in SUFFIXES) if place.is_dir() else [place]
        files += inside
    with join() as world:
        subject = load_subject(path, device=world.device)
        if not atlas and not subject.clusters:
            raise UserError(
                f"{path}: names no clusters itself: draw an atlas by seer-pipe atlas, and give its folder by --atlas; "
                "a run whose objective names clusters, or its export --format full, needs none"
            )
        centroids = read_centroids(atlas, subject.digest) if atlas else None
        listed = FilePictures(files, ", ".join(map(os.fspath, images)))
        pictures = Images(listed, subject.size, subject.frames, device=str(world.device))
        try:
            for numbers, pixels in pictures.batches():
                with torch.no_grad():
                    features = subject.trunk(pixels.to(world.device)).float()
                found = assign(subject, features, centroids)
                assert found is not None
                for number, cluster, confidence in zip(
                    numbers, found.cluster.tolist(), found.confidence.tolist(), strict=True
                ):
                    yield {"file": str(files[number]), "cluster": cluster, "confidence": round(confidence, 4)}
            for number, reason in sorted(pictures.left_out.items()):
                yield {"file": str(files[number]), "cluster": None, "reason": reason}
        finally:
            pictures.close()
