"""Where the clusters and their images stand on the map of an atlas: arithmetic alone, the same for the same input.

Centres are laid out by t-SNE (openTSNE; by principal components where it is not installed), as discs of the area that
their images need, which are pushed apart until none covers another. The images of a cluster stand in its disc on a
grid, one a cell: those nearest to the centre in the middle, the others towards the clusters that they resemble.
"""

from __future__ import annotations

import warnings
from importlib.util import find_spec

import numba
import numpy as np
import numpy.typing as npt

from seer_pipe.data.order import Ints

Floats = npt.NDArray[np.float32]

EARLY, LATE = 150, 350  # iterations of t-SNE: with exaggeration, without
FEW = 8  # clusters below which there is nothing to lay out by neighbours
FILL, GAP = 0.8, 0.7  # share of a disc's cells that have an image; cells between discs
DENSITY = 1.2  # area of the discs as a share of the map's before they are pushed apart
SWEEPS = 200  # of pushing apart, at most
GOLDEN = np.pi * (3 - np.sqrt(5))


def has_tsne() -> bool:
    return find_spec("openTSNE") is not None


def lay_out(reduced: Floats) -> npt.NDArray[np.float64]:
    """Places [k, 2] of centres whose principal components are ``reduced`` [k, >= 2], the first with most variance."""
    start = reduced[:, :2].astype(np.float64)
    if len(reduced) < FEW or not has_tsne():
        return start
    from openTSNE import TSNE

    start *= 1e-4 / max(float(start[:, 0].std()), 1e-12)  # the scale that t-SNE begins from
    perplexity = min(30.0, (len(reduced) - 1) / 3)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of what its own dependencies will drop
        found = TSNE(
            perplexity=perplexity, initialization=start, early_exaggeration_iter=EARLY, n_iter=LATE, random_state=0,
            n_jobs=1,
        ).fit(reduced)  # fmt: skip
    return np.asarray(found, np.float64)


def radii(images: Ints) -> npt.NDArray[np.float64]:
    """Of the disc of each cluster, in cells."""
    return np.sqrt(images / (np.pi * FILL)) + GAP / 2


def spread(place: npt.NDArray[np.float64], radius: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Places [k, 2] in cells such that discs of these radii do not cover each other, but for what SWEEPS leave over."""
    x, y = (place - place.mean(0)).T
    extent = np.pi * max(float(np.quantile(np.hypot(x, y), 0.95)), 1e-12) ** 2
    scale = np.sqrt(np.pi * (radius**2).sum() / DENSITY / extent)
    x, y = x * scale, y * scale
    for _ in range(SWEEPS):
        order = np.argsort(x, kind="stable")
        sx, sy, sr = x[order], y[order], radius[order]
        moved = _push(sx, sy, sr, float(radius.max()))
        x[order], y[order] = sx, sy
        if moved < 0.05:
            break
    return np.stack([x, y], axis=1)


@numba.njit
def _push(x, y, radius, largest):  # type: ignore[no-untyped-def]
    """Move every two discs apart that cover each other, the smaller one further; the largest overlap there was.
    ``x`` rises."""
    most = 0.0
    for i in range(len(x)):
        for j in range(i + 1, len(x)):
            if x[j] - x[i] > radius[i] + 2 * largest:  # what was moved may stand out of order by as much
                break
            across, down = x[j] - x[i], y[j] - y[i]
            apart = np.sqrt(across * across + down * down)
            overlap = radius[i] + radius[j] - apart
            if overlap <= 0.01:
                continue
            most = max(most, overlap)
            if apart < 1e-9:  # in one place: some direction that is another for every two
                across, down, apart = np.cos(GOLDEN * j), np.sin(GOLDEN * j), 1.0
            share = radius[j] ** 2 / (radius[i] ** 2 + radius[j] ** 2)
            x[i] -= across / apart * overlap * share
            y[i] -= down / apart * overlap * share
            x[j] += across / apart * overlap * (1 - share)
            y[j] += down / apart * overlap * (1 - share)
    return most


def towards(alike: Floats, home: Ints, near: Ints, place: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """The angle [n] under which each image stands from the middle of its cluster: towards the neighbours that it
    resembles more than the cluster's other images do.

    ``alike`` [n, m]: cosine of each image to the clusters ``near`` [k, m] its own, ``home`` [n].
    """
    k = len(near)
    count = np.maximum(np.bincount(home, minlength=k), 1)
    weight = np.empty(alike.shape)  # no column where there is one cluster alone
    for column, own in zip(alike.T, weight.T, strict=True):
        own[:] = column - (np.bincount(home, column, k) / count)[home]
    away = place[near] - place[:, None]
    away /= np.maximum(np.linalg.norm(away, axis=2, keepdims=True), 1e-12)
    x, y = np.einsum("nm,nmc->cn", weight, away[home])
    return np.arctan2(y, x)


def targets(place: npt.NDArray[np.float64], images: Ints, angle: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Where each image would stand, [n, 2] in cells: those of a cluster behind one another, the nearest first.

    The angles of a cluster are evened out, so that its disc is filled whatever they are.
    """
    home = np.repeat(np.arange(len(images)), images)
    first = np.repeat(np.cumsum(images) - images, images)
    rank = np.arange(len(home)) - first
    order = np.lexsort((angle, home))
    even = np.empty(len(home))
    even[order] = 2 * np.pi * rank / images[home] - np.pi
    out = np.sqrt((rank + 0.5) / (np.pi * FILL))
    return place[home] + out[:, None] * np.stack([np.cos(even), np.sin(even)], axis=1)


def cells(target: npt.NDArray[np.float64], first: Ints) -> tuple[Ints, Ints]:
    """A cell for each image alone, [n, 2] from 0, and the target [2] that cell 0 stands for: the free one nearest to
    its target; who is ``first`` [n] chooses before the others (lower numbers).

    In rounds: each image without a cell asks for the next of the cells around its target, by distance, and the first
    of those that ask for a free one has it.
    """
    wanted = np.rint(target).astype(np.int64)
    margin = int(np.ceil(np.sqrt(len(target)))) + 1  # no image is pushed further
    origin = wanted.min(0) - margin
    wanted -= origin
    width, height = wanted.max(0) + margin + 1
    around = _spiral(margin)
    taken = np.zeros(width * height, np.bool_)
    found = np.empty(len(target), np.int64)
    left = np.argsort(first, kind="stable")
    for offset in around:
        ask = (wanted[left, 0] + offset[0]) * height + wanted[left, 1] + offset[1]
        free = ~taken[ask]
        _, winners = np.unique(ask, return_index=True)  # the first of each
        wins = np.zeros(len(left), np.bool_)
        wins[winners] = True
        wins &= free
        found[left[wins]] = ask[wins]
        taken[ask[wins]] = True
        left = left[~wins]
        if not len(left):
            break
    place = np.stack(np.divmod(found, height), axis=1)
    return place - place.min(0), origin + place.min(0)


def _spiral(most: int) -> Ints:
    """Offsets of at most ``most`` cells a side, by distance."""
    side = np.arange(-most, most + 1)
    x, y = (axis.ravel() for axis in np.meshgrid(side, side, indexing="ij"))
    order = np.argsort(x * x + y * y, kind="stable")
    return np.stack([x, y], axis=1)[order]
