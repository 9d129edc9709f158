"""How well orders of images mix, this project's and others': the parts shuffle and mixing of stream.py."""

import argparse
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np


def shuffle(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    """Distinct shards in a batch of 4096, of 2,000 shards of 1,000 samples, at the mean of many batches of an epoch."""
    from seer_pipe.data.order import Plan

    count, size, batch = 2000, 1000, 4096
    total, random = count * size, np.random.default_rng(0)
    plan = Plan(np.full(count, size), batch, seed=0)
    starts = range(0, plan.steps_per_epoch, 10)

    def distinct(order: np.ndarray) -> float:
        return float(np.mean([len(np.unique(order[s * batch : (s + 1) * batch] // size)) for s in starts]))

    laid = (random.permutation(count)[:, None] * size + np.arange(size)).ravel()  # shuffled shards, end to end
    return {
        "full shuffle": distinct(random.permutation(total)),
        "seer_pipe": float(np.mean([len(np.unique(plan.locate(s, np.arange(batch)).shard)) for s in starts])),
        "webdataset, shuffle(1000), 16 workers": distinct(interleave(laid, 16, batch, random, buffered)),
        "MosaicML py1e, block 2^18, 8 nodes": distinct(interleave(laid, 8, batch, random, py1e)),
    }


MIXED = [(9469, 64), (9469, 256), (50_000, 500), (1_024_000, 256), (1_280_000, 256), (1 << 20, 1024)]


def mixing(folder: Path, args: argparse.Namespace) -> dict[str, Any]:
    from seer_pipe.data.order import WINDOW, Plan

    results: dict[str, Any] = {}
    for total, batch in MIXED:
        orders: dict[str, Callable[[int], np.ndarray]] = {"first version": partial(first_version, total, batch)}
        for window in (1, 4, 8, 16, WINDOW):
            plan = Plan([total], batch, seed=1, window=window)
            orders[f"window {window}, chunk {plan.chunk}"] = partial(samples_at, plan)
        for name, order in orders.items():
            results[f"{total:,} / {batch}, {name}"] = " ".join(f"{value:6.3f}" for value in mixed(order, total, batch))
    return results


def samples_at(plan: Any, step: int) -> np.ndarray:
    samples: np.ndarray = plan.locate(step, np.arange(plan.batch)).sample
    return samples


def first_version(total: int, batch: int, step: int) -> np.ndarray:
    """The samples of a step: a lane an image, each read from front to end, chunk after chunk."""
    from seer_pipe.data.order import permute
    from seer_pipe.data.random import derive_key

    chunk = min(128, max(1, total // (8 * batch)))
    epoch, turn = divmod(step, total // batch)
    place, inside = np.divmod(np.arange(batch) * total // batch + turn, chunk)
    whole = total // chunk  # what is left over stays at the end
    shuffled = permute(np.minimum(place, whole - 1), whole, derive_key(1, 0, epoch))
    return np.where(place < whole, shuffled, place) * chunk + inside


def mixed(order: Callable[[int], np.ndarray], total: int, batch: int, steps: int = 500) -> tuple[float, ...]:
    """Correlation of consecutive batches, the largest of 40, variance of ten steps, how often equal places meet."""
    per_epoch = total // batch
    epochs = max(1, steps // per_epoch)
    found = np.empty((epochs, min(per_epoch, steps), 10))
    alike = 0.0
    for number in range(epochs):
        for turn in range(found.shape[1]):
            samples = order(number * per_epoch + turn)
            found[number, turn] = np.bincount(samples * 10 // total, minlength=10) - batch / 10
            residues = np.bincount(samples % 128, minlength=128)
            alike += float((residues * (residues - 1)).sum()) / (batch * (batch - 1))
    variance = (found**2).mean()
    lags = [float((found[:, lag:] * found[:, :-lag]).mean() / variance) for lag in range(1, min(41, per_epoch))]
    tens = found[:, : found.shape[1] // 10 * 10].reshape(epochs, -1, 10, 10).sum(2)
    shuffled = 10 * batch * 0.09 * (1 - 10 * batch / total)
    return lags[0], max(lags), float((tens**2).mean() / shuffled), alike * 128 / (epochs * found.shape[1])


def interleave(
    laid: np.ndarray, parts: int, batch: int, random: np.random.Generator, inner: Callable[..., np.ndarray]
) -> np.ndarray:
    """Each of ``parts`` shuffles its own share; a batch takes as many from each."""
    share = batch // parts
    length = len(laid) // parts // share * share
    rows = [inner(part, random)[:length].reshape(-1, share) for part in np.array_split(laid, parts)]
    return np.concatenate(rows, axis=1).ravel()


def buffered(order: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """webdataset.filters._shuffle with a buffer of 1000: each sample that comes swaps with one of the buffer."""
    buffer, out = order[:1000].copy(), []
    picks = random.integers(0, 1000, len(order) - 1000)
    for sample, pick in zip(order[1000:].tolist(), picks.tolist(), strict=True):
        out.append(buffer[pick])
        buffer[pick] = sample
    return np.concatenate([np.array(out), random.permutation(buffer)])


def py1e(order: np.ndarray, random: np.random.Generator, block: int = 1 << 18, size: int = 1000) -> np.ndarray:
    """streaming.base.shuffle.py1e: every sample is moved by up to half a block, less its shard, either way."""
    half = (block - size) / 2
    return order[np.argsort(np.arange(len(order)) + random.uniform(-half, half, len(order)))]
