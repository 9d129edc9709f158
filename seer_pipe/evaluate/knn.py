"""Nearest-neighbour evaluation: what the features are worth without training anything on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from seer_pipe.evaluate.labels import left_out, open_labelled
from seer_pipe.evaluate.stages import keep_stages
from seer_pipe.evaluate.workbench import on_bench


def neighbours(queries: Tensor, bank: Tensor, k: int, *, leave_one_out: bool = False, rows: int = 1024) -> tuple[
    Tensor, Tensor
]:  # fmt: skip
    """Cosine similarity and row in ``bank`` of the ``k`` nearest of each query: two [q, k], nearest first.

    Exact, ``rows`` queries at a time. ``leave_one_out``: the queries are the bank, and none finds itself.
    """
    queries, bank = F.normalize(queries.float(), dim=1), F.normalize(bank.float(), dim=1)
    similar, nearest = [], []
    for start in range(0, len(queries), rows):
        block = queries[start : start + rows] @ bank.T
        if leave_one_out:
            here = torch.arange(len(block), device=block.device)
            block[here, start + here] = -torch.inf
        values, places = block.topk(k, dim=1)
        similar.append(values)
        nearest.append(places)
    return torch.cat(similar), torch.cat(nearest)


def knn_accuracy(
    queries: Tensor,
    query_labels: Tensor,
    bank: Tensor,
    bank_labels: Tensor,
    *,
    k: int = 20,
    temperature: float = 0.07,
    leave_one_out: bool = False,
) -> float:
    """Share of queries [q, D] whose label [q] wins the vote of their neighbours in the bank [m, D], [m].

    A neighbour of cosine similarity s votes with weight exp(s / temperature) (Wu et al., "Unsupervised Feature
    Learning via Non-Parametric Instance Discrimination", CVPR 2018, section 3.4). ``k`` is cut to what there is.
    """
    k = min(k, len(bank) - leave_one_out)
    similar, nearest = neighbours(queries, bank, k, leave_one_out=leave_one_out)
    weights = ((similar - 1) / temperature).exp()  # the largest is 1: no overflow
    votes = torch.zeros(len(queries), int(bank_labels.max()) + 1, device=weights.device)
    votes.scatter_add_(1, bank_labels[nearest], weights)
    return float((votes.argmax(dim=1) == query_labels).float().mean())


def evaluate_knn(
    path: Path,
    data: str,
    labels: str | None,
    queries: str | None,
    *,
    k: int,
    temperature: float,
    untrained: bool,
    stage: str | None = None,
) -> dict[str, Any] | None:
    """Classify the images of ``queries`` by those of ``data``; without any, those of ``data`` by one another.

    ``stage``: as in `readings`. On several ranks each extracts its share; the result is the first one's, and the others
    have None.
    """
    bank = open_labelled(data, labels)
    asked = None if queries is None else open_labelled(queries, labels, bank.classes)
    with on_bench(path, bank.pictures, untrained, clips=True) as bench:
        readings = bench.readings(stage, grid=False)
        known = bench.features(bank, readings)
        wanted = known if asked is None else bench.features(asked, readings)
        if known is None or wanted is None:
            return None
        parts = [known] if asked is None else [known, wanted]
        k = min(k, len(known.labels) - (asked is None))  # as in knn_accuracy: what is reported is what was used
        about = {"data": data, "queries": queries or data, "k": k, "temperature": temperature}
        left = left_out(*(part.left_out for part in parts))
        images = len(wanted.labels)
        shared = {"images": images, "left_out": left, "classes": len(bank.classes), **about}
        results = []
        for reading, queried, features in zip(readings, wanted.features, known.features, strict=True):
            accuracy = knn_accuracy(
                queried, wanted.labels, features, known.labels,
                k=k, temperature=temperature, leave_one_out=asked is None,
            )  # fmt: skip
            results.append((reading, {"accuracy": accuracy, **shared}))
        return keep_stages(path, "knn", stage, results, bench.subject, untrained, lambda found: found["accuracy"])
