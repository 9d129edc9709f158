"""Linear classification on frozen features: with all labels, and with a small share of them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seer_pipe.errors import UserError
from seer_pipe.evaluate.classifiers import fit, stratified
from seer_pipe.evaluate.labels import Labelled, left_out, open_labelled
from seer_pipe.evaluate.stages import Reading, keep_stages
from seer_pipe.evaluate.workbench import Bench, Part, check_classes, on_bench, train_and_test


def evaluate_linear(
    path: Path,
    data: str,
    labels: str | None,
    test: str | None,
    *,
    seed: int,
    untrained: bool,
    stage: str | None = None,
) -> dict[str, Any] | None:
    """Train linear classifiers on the features of ``data``, and report the chosen one on ``test``.

    Without ``test`` a fifth of ``data`` is held out to test on. ``stage``: as in `readings`. None but on the first
    rank.
    """
    learnt = open_labelled(data, labels)
    with on_bench(path, learnt.pictures, untrained, clips=True) as bench:
        readings = bench.readings(stage, grid=True)
        parts = features_of_parts(bench, learnt, labels, test, seed, readings)
        if parts is None:
            return None
        (learnt_x, y, left), (tested_x, test_y, test_left) = parts
        results = []
        for reading, x, test_x in zip(readings, learnt_x, tested_x, strict=True):
            best = fit(x, y, len(learnt.classes), seed=seed)
            result = {
                "accuracy": best.accuracy(test_x, test_y),
                "protocol": "quick",
                "validation": best.validation,
                "lr": best.setting.lr,
                "weight_decay": best.setting.weight_decay,
                "images": len(test_x),
                "trained_on": len(x),
                "left_out": left_out(left, test_left),
                "classes": len(learnt.classes),
                "data": data,
                "test": test or f"a part of {data}",
                "seed": seed,
            }
            results.append((reading, result))
        return keep_stages(
            path, "linear", stage, results, bench.subject, untrained,
            lambda found: found["accuracy"] if found["validation"] is None else found["validation"],
        )  # fmt: skip


def evaluate_lowshot(
    path: Path,
    data: str,
    labels: str | None,
    test: str | None,
    *,
    shares: Sequence[float],
    draws: int,
    seed: int,
    untrained: bool,
    stage: str | None = None,
) -> dict[str, Any] | None:
    """As ``evaluate_linear``, with ``shares`` of each class's images, each drawn ``draws`` times; the means.

    Of ``all`` stages the best one is that of the first share.
    """
    if not all(0 < share <= 1 for share in shares):
        raise UserError(f"shares {list(shares)}: each is a part of the images, more than 0 and at most 1")
    learnt = open_labelled(data, labels)
    with on_bench(path, learnt.pictures, untrained, clips=True) as bench:
        readings = bench.readings(stage, grid=True)
        parts = features_of_parts(bench, learnt, labels, test, seed, readings)
        if parts is None:
            return None
        (learnt_x, y, left), (tested_x, test_y, test_left) = parts
        about = {
            "images": len(test_y),
            "left_out": left_out(left, test_left),
            "classes": len(learnt.classes),
            "draws": draws,
            "data": data,
            "test": test or f"a part of {data}",
            "seed": seed,
        }
        results = []
        for reading, x, test_x in zip(readings, learnt_x, tested_x, strict=True):
            found: dict[str, Any] = {}
            for share in shares:
                accuracies, images = [], 0
                for draw in range(seed, seed + draws):
                    rows = stratified(y, share, draw)
                    images = int(rows.sum())
                    accuracies.append(fit(x[rows], y[rows], len(learnt.classes), seed=draw).accuracy(test_x, test_y))
                name = f"accuracy_{percent(share)}"
                found[name] = statistics.mean(accuracies)
                found[name.replace("accuracy", "std")] = statistics.pstdev(accuracies)
                found[name.replace("accuracy", "trained_on")] = images
            results.append((reading, {**found, **about}))
        first = f"accuracy_{percent(shares[0])}"
        return keep_stages(path, "lowshot", stage, results, bench.subject, untrained, lambda found: found[first])


def percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else f"{share:%}"


def features_of_parts(
    bench: Bench, learnt: Labelled, labels: str | None, test: str | None, seed: int, readings: Sequence[Reading]
) -> tuple[Part, Part] | None:
    """Features and labels to learn from, and to test on; None but on the first rank."""
    learnt, tested = train_and_test(learnt, labels, test, seed)
    parts = bench.features(learnt, readings), bench.features(tested, readings)
    if parts[0] is None or parts[1] is None:
        return None
    check_classes(learnt, parts[0].labels.tolist())
    return parts[0], parts[1]
