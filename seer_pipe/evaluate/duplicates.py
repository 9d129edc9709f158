"""Images that mean the same, by their features, after SemDeDup (arXiv 2303.09540).

Within each cluster every image is compared with the earlier ones; what is nearer than a threshold to any of them is a
duplicate. Of a chain of duplicates the first in the order of the set stays, as with ``seer-ingest dedup``; SemDeDup
keeps the one furthest from the centre, and found the choice to matter little. And features are centred first: those of
a trunk that ends in ReLU and a mean all point the same way, and their plain cosines are near 1 whatever they show.

How near is too near depends on the features: those of a weak trunk set different pictures of one kind as near each
other as copies. So unless a threshold is given, each group of images has the least of `COSINES` that calls no more than
half of them duplicates; where all call more, as of copies of one picture, the greatest.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from seer_pipe.data.order import Ints
from seer_pipe.evaluate.balance import ancestors, totals

BLOCK = 4096  # images that are compared with as many at once
COSINES = (0.9, 0.95, 0.98, 0.99, 0.995, 0.998, 0.999)


@dataclass(frozen=True)
class Duplicates:
    first: Ints  # [n]: of a duplicate, the row of the first image of its chain; else -1
    cosine: npt.NDArray[np.float32]  # [n]: to the nearest earlier image of its cluster; -1 where there is none

    @property
    def found(self) -> npt.NDArray[np.bool_]:
        return self.first >= 0


def coarsest(sizes: Ints, parents: Sequence[Ints], comparisons: float) -> Ints:
    """The clusters to compare within, [K] by lowest cluster: those of the highest level, or all images as one, at which
    no more than so many pairs are compared; at worst the lowest."""
    every = [*totals(sizes, parents), np.array([sizes.sum()])]
    places = [*ancestors(len(sizes), parents), np.zeros(len(sizes), np.int64)]
    fit = [level for level, images in enumerate(every) if float((images.astype(np.float64) ** 2).sum()) <= comparisons]
    return places[max(fit, default=0)]


@torch.no_grad()
def nearest_earlier(
    rows: Tensor, mean: Tensor, cluster: Ints, device: torch.device | str = "cpu"
) -> tuple[Ints, npt.NDArray[np.float32]]:
    """Of each of ``rows`` [n, D], less their ``mean`` [D], the nearest earlier row of the same ``cluster`` [n], and the
    cosine to it; -1 where there is none. Memory holds two blocks of rows and their products."""
    nearest = np.full(len(rows), -1, np.int64)
    cosine = np.full(len(rows), -1, np.float32)
    order = np.argsort(cluster, kind="stable")
    for members in np.split(order, np.flatnonzero(np.diff(cluster[order])) + 1):
        blocks = [members[at : at + BLOCK] for at in range(0, len(members), BLOCK)]
        for number, block in enumerate(blocks):
            mine = _centred(rows, block, mean, device)
            for other, earlier in enumerate(blocks[: number + 1]):
                product = mine @ (mine if other == number else _centred(rows, earlier, mean, device)).T
                if other == number:
                    product.masked_fill_(torch.ones_like(product, dtype=torch.bool).triu_(), -torch.inf)
                best, place = (found.cpu().numpy() for found in product.clamp_(max=1).max(dim=1))
                closer = best > cosine[block]
                cosine[block[closer]], nearest[block[closer]] = best[closer], earlier[place[closer]]
    return nearest, cosine


def thresholds(cosine: npt.NDArray[np.float32], group: Ints) -> npt.NDArray[np.float64]:
    """Of each group the least of `COSINES` that no more than half of its images are above, [G]; the greatest where
    there is none. ``group`` [n]: from 0 on."""
    had = np.bincount(group)
    least = np.full(len(had), COSINES[-1])
    for above in reversed(COSINES):
        least[2 * np.bincount(group, cosine > above, len(had)) <= had] = above
    return least


def duplicates(
    nearest: Ints, cosine: npt.NDArray[np.float32], threshold: float | npt.NDArray[np.float64]
) -> Duplicates:
    """The duplicates among n images: those whose ``cosine`` [n] to the ``nearest`` [n] earlier one is above the
    threshold, or each above its own [n]."""
    first = np.where(cosine > threshold, nearest, -1)
    while True:  # to the first of each chain: what a duplicate is near to may itself be one
        before = np.where(first >= 0, first[first], -1)
        if (before < 0).all():
            return Duplicates(first, cosine)
        first = np.where(before >= 0, before, first)


def _centred(rows: Tensor, which: Ints, mean: Tensor, device: torch.device | str) -> Tensor:
    return F.normalize(rows[torch.from_numpy(which)].to(device).float() - mean.to(device))
