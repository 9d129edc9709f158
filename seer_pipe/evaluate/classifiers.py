"""Linear classifiers on features that were computed once, many settings in one pass.

A protocol of its own, and not SwAV's: that one sees augmented crops in each epoch, at one published rate. Here features
are those of central crops, standardised, and learning rate and weight decay are chosen from a grid on held-out images.
The optimiser is the same (100 epochs of SGD with momentum 0.9, a cosine to 0, weights from N(0, 0.01)).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product

import torch
import torch.nn.functional as F
from torch import Tensor

BATCH, EPOCHS, LEAST_STEPS, MOMENTUM = 256, 100, 1000, 0.9
LEARNING_RATES = (0.001, 0.003, 0.01, 0.03, 0.1, 0.3, 1.0)
WEIGHT_DECAYS = (1e-6, 1e-4, 1e-3, 1e-2)
HELD_OUT = 0.1  # share of each class that settings are chosen on
PRIOR = 10  # images that the mean variance of all features counts for in each feature's own: a few say little about it


@dataclass(frozen=True)
class Setting:
    lr: float
    weight_decay: float


GRID = [Setting(lr, decay) for lr, decay in product(LEARNING_RATES, WEIGHT_DECAYS)]


@dataclass(frozen=True)
class Fit:
    """A trained classifier: ``weight`` [C, D] and ``bias`` [C] over features less ``mean`` [D], over ``std`` [D]."""

    weight: Tensor
    bias: Tensor
    mean: Tensor
    std: Tensor
    setting: Setting
    validation: float | None  # accuracy on the held-out images; None where there were too few

    def accuracy(self, features: Tensor, labels: Tensor) -> float:
        scores = (features - self.mean) / self.std @ self.weight.T + self.bias
        return float((scores.argmax(dim=1) == labels).float().mean())


def fit(features: Tensor, labels: Tensor, classes: int, *, seed: int = 0) -> Fit:
    """The classifier of features [n, D] into labels [n] of ``classes``, its setting chosen on a held-out part.

    All settings are trained without that part, and the best one again with it. Where no class has two images
    nothing can be held out, and the setting is the middle one of the grid.
    """
    mean, variance = features.mean(dim=0), features.var(dim=0, correction=0)
    n = len(features)
    std = ((n * variance + PRIOR * variance.mean()) / (n + PRIOR)).sqrt().clamp_min(1e-12)
    whole = (features - mean) / std
    held = stratified(labels, HELD_OUT, seed, keep_one=True)
    setting, validation = GRID[len(GRID) // 2], None
    if held.any():
        weights, biases = train_heads(whole[~held], labels[~held], classes, GRID, seed=seed)
        found = []
        for setting, weight, bias in zip(GRID, weights, biases, strict=True):
            scores = whole[held] @ weight.T + bias
            right = float((scores.argmax(dim=1) == labels[held]).float().mean())
            loss = float(F.cross_entropy(scores, labels[held]).nan_to_num(torch.inf))
            found.append((right if math.isfinite(loss) else 0.0, -loss, setting))
        validation, _, setting = max(found, key=lambda one: one[:2])  # of equally many right ones, the surest
    (weight,), (bias,) = train_heads(whole, labels, classes, [setting], seed=seed)
    return Fit(weight, bias, mean, std, setting, validation)


def train_heads(
    features: Tensor, labels: Tensor, classes: int, settings: list[Setting], *, seed: int, steps: int | None = None
) -> tuple[Tensor, Tensor]:
    """Weights [H, C, D] and biases [H, C] of one classifier a setting; each is trained as if it were alone.

    All see the same batches, so that a batch costs one product of [B, D] and [D, H C].
    """
    n, width = features.shape
    batch = min(BATCH, n)
    steps = steps or max(EPOCHS * (n // batch), LEAST_STEPS)
    generator = torch.Generator().manual_seed(seed)
    first = torch.randn(classes, width, generator=generator) * 0.01
    weights = first.to(features).repeat(len(settings), 1, 1)
    biases = features.new_zeros(len(settings), classes)
    rates = features.new_tensor([s.lr for s in settings])
    decays = features.new_tensor([s.weight_decay for s in settings])
    moments = [torch.zeros_like(weights), torch.zeros_like(biases)]
    for step, rows in zip(range(steps), _batches(n, batch, generator), strict=False):
        x, y = features[rows], labels[rows]
        scores = (x @ weights.flatten(0, 1).T).unflatten(1, (len(settings), classes)) + biases
        # the gradient of the mean cross entropy of each head's scores
        slope = (F.softmax(scores, dim=2) - F.one_hot(y, classes)[:, None]) / batch
        gradients = [(slope.flatten(1).T @ x).view_as(weights), slope.sum(dim=0)]
        rate = rates * 0.5 * (1 + math.cos(math.pi * step / steps))
        for value, gradient, moment in zip((weights, biases), gradients, moments, strict=True):
            shape = (-1, *[1] * (value.ndim - 1))
            moment.mul_(MOMENTUM).add_(gradient + decays.view(shape) * value)
            value.sub_(rate.view(shape) * moment)
    return weights, biases


def _batches(n: int, batch: int, generator: torch.Generator) -> Iterator[Tensor]:
    """Rows of batch after batch, a new order in every epoch; what does not fill a batch waits for the next epoch."""
    while True:
        order = torch.randperm(n, generator=generator)
        yield from order[: n - n % batch].split(batch)


def stratified(labels: Tensor, share: float, seed: int, *, keep_one: bool = False) -> Tensor:
    """A choice of rows, [n] bool: of each class about ``share`` of its images, and at least one.

    ``keep_one``: never a class's last image, so that none is without images outside the choice.
    """
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.zeros(len(labels), dtype=torch.bool)
    for label in labels.unique().tolist():
        rows = torch.nonzero(labels.cpu() == label).flatten()
        count = max(1, round(share * len(rows)))
        if keep_one:
            count = min(count, len(rows) - 1)
        chosen[rows[torch.randperm(len(rows), generator=generator)[:count]]] = True
    return chosen.to(labels.device)
