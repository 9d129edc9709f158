"""The evaluations as commands: load, compute, tell, and keep the result with the run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch

from seer_pipe.data.views import Crops, centre
from seer_pipe.errors import UserError
from seer_pipe.evaluate.features import Features, Images, extract
from seer_pipe.evaluate.knn import knn_accuracy, retrieval_accuracy
from seer_pipe.evaluate.subject import Subject, load_run, load_subject, read_labels
from seer_pipe.export import FORMATS, Preprocessing, export_backbone
from seer_pipe.export.recalibrate import recalibrate_batch_norm
from seer_pipe.shards import ShardSet
from seer_pipe.store import FolderStore


def _subject(path: Path, data: str, untrained: bool) -> Subject:
    """Untrained weights get the data's BatchNorm statistics: without any they would be worth less than they are."""
    subject = load_subject(path, untrained=untrained)
    if untrained:
        images = Images(ShardSet.open(data), subject.size)
        recalibrate_batch_norm(subject.trunk, (pixels for _, pixels in images.batches()))
        images.close()
    return subject


def _features(subject: Subject, data: str) -> tuple[ShardSet, Features]:
    shards = ShardSet.open(data)
    images = Images(shards, subject.size)
    try:
        return shards, extract(subject.trunk, images)
    finally:
        images.close()


def _labelled(subject: Subject, data: str, labels: str) -> tuple[torch.Tensor, list[str]]:
    """Features and label names of the images that have one."""
    shards, features = _features(subject, data)
    numbers, names = read_labels(shards, labels)
    named = [names[n] if n >= 0 else "" for n in numbers[features.samples].tolist()]
    rows = [row for row, name in enumerate(named) if name]
    return features.matrix[rows], [named[row] for row in rows]


def evaluate_knn(
    path: Path, data: str, labels: str, queries: str | None, *, k: int, temperature: float, untrained: bool
) -> dict[str, Any]:
    subject = _subject(path, data, untrained)
    bank, bank_names = _labelled(subject, data, labels)
    asked, asked_names = (bank, bank_names) if queries is None else _labelled(subject, queries, labels)
    numbers = {name: number for number, name in enumerate(sorted(set(bank_names)))}
    strange = sorted(set(asked_names) - numbers.keys())
    if strange:
        raise UserError(f"{queries}: class {strange[0]!r} has no image in {data}")
    accuracy = knn_accuracy(
        asked,
        torch.tensor([numbers[name] for name in asked_names]),
        bank,
        torch.tensor([numbers[name] for name in bank_names]),
        k=k,
        temperature=temperature,
        leave_one_out=queries is None,
    )
    about = {"data": data, "queries": queries or data, "k": k, "temperature": temperature}
    return _keep(
        path, "knn", {"accuracy": accuracy, "images": len(asked), "classes": len(numbers), **about}, subject, untrained
    )


def evaluate_retrieval(path: Path, data: str, *, untrained: bool) -> dict[str, Any]:
    subject = _subject(path, data, untrained)
    images = Images(ShardSet.open(data), subject.size)
    first = extract(subject.trunk, images, lambda height, width: _half(height, width, subject.size, 0))
    second = extract(subject.trunk, images, lambda height, width: _half(height, width, subject.size, 1))
    images.close()
    result = {"accuracy": retrieval_accuracy(first.matrix, second.matrix), "images": len(first.samples), "data": data}
    return _keep(path, "retrieval", result, subject, untrained)


def _half(height: np.ndarray, width: np.ndarray, size: int, which: int) -> Crops:
    """A square at the one or at the other end of the longer side, as large as half of that side allows."""
    crop = centre(height, width, size, size)
    side = np.maximum(1, np.minimum(np.maximum(height, width) // 2, np.minimum(height, width)))
    lying = width >= height
    top = np.where(lying, (height - side) // 2, which * (height - side))
    left = np.where(lying, which * (width - side), (width - side) // 2)
    crop.box[:] = np.stack([top, left, side, side], axis=1)
    return crop


def _keep(path: Path, name: str, result: dict[str, Any], subject: Subject, untrained: bool) -> dict[str, Any]:
    """Store the result beside what was evaluated."""
    result = {"evaluation": name, **result, "images_seen": subject.images, "untrained": untrained}
    file = f"evaluation/{name}{'-untrained' if untrained else ''}-{subject.images}.json"
    FolderStore(path).put(file, json.dumps(result, indent=1).encode())
    return result


def export_run(run: Path, out: Path, format: str = "torchvision") -> None:
    """Export the trunk of a run's newest checkpoint, compared on images of its own data."""
    if format not in FORMATS:
        raise UserError(f"no export format {format!r}: choose {', '.join(FORMATS)}")
    subject, config, network = load_run(run)
    images = Images(ShardSet.open(config.data.paths[0]), subject.size, batch=8)
    try:
        _, pixels = next(images.batches())
    finally:
        images.close()
    results = {file.stem: json.loads(file.read_text()) for file in sorted((run / "evaluation").glob("*.json"))}
    table = "\n".join(f"| {name} | {result['accuracy']:.4f} |" for name, result in results.items())
    sections = {"Recipe": f"`{config.name}`: {config.objective.name}, {config.train.batch} images a step."}
    if results:
        sections["Evaluation"] = f"| evaluation | accuracy |\n|---|---|\n{table}"
    export_backbone(
        subject.trunk,
        out,
        format=format,
        images=pixels,
        metadata={"images_seen": str(subject.images), "method": config.objective.name, "run": config.name},
        preprocessing=Preprocessing(size=subject.size),
        sections=sections,
        head=network.head if format == "full" else None,
    )
