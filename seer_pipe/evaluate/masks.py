"""How well masks agree: region similarity J and contour accuracy F, as the benchmark of DAVIS 2017 has them.

Perazzi et al. 2016, "A benchmark dataset and evaluation methodology for video object segmentation", section 5, with the
choices of the benchmark's code (davis2017-evaluation).
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

Mask = npt.NDArray[np.bool_]  # [h, w]

TOLERANCE = 0.008  # of the image's diagonal, within which two contours match


def region_similarity(mask: Mask, truth: Mask) -> float:
    """J: what both cover of what one of them does; 1 where both are empty."""
    union = int((mask | truth).sum())
    return int((mask & truth).sum()) / union if union else 1.0


def contour_accuracy(mask: Mask, truth: Mask) -> float:
    """F: the harmonic mean of precision and recall of the contour's pixels, which match one of the other contour no
    farther away than the tolerance. With one contour empty and the other not it is 0, with both empty 1."""
    found, wanted = contour(mask), contour(truth)
    if not found.any() or not wanted.any():
        return float(found.any() == wanted.any())
    radius = math.ceil(TOLERANCE * math.hypot(*mask.shape))
    precision = float(dilated(wanted, radius)[found].mean())
    recall = float(dilated(found, radius)[wanted].mean())
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def contour(mask: Mask) -> Mask:
    """The pixels that differ from the one to their right, below, or both; past the border is what is on it."""
    padded = np.pad(mask, ((0, 1), (0, 1)), mode="edge")
    found: Mask = (mask ^ padded[:-1, 1:]) | (mask ^ padded[1:, :-1]) | (mask ^ padded[1:, 1:])
    return found


def dilated(mask: Mask, radius: int) -> Mask:
    """All pixels no farther than ``radius`` from one of the mask's: row by row of the disc, each by running sums."""
    height, width = mask.shape
    sums = np.pad(np.cumsum(mask, axis=1, dtype=np.int32), ((0, 0), (1, 0)))
    columns, found = np.arange(width), np.zeros_like(mask)
    for down in range(-min(radius, height - 1), min(radius, height - 1) + 1):
        reach = math.isqrt(radius**2 - down**2)
        near = sums[:, np.minimum(columns + reach + 1, width)] > sums[:, np.maximum(columns - reach, 0)]
        found[max(0, down) : height + min(0, down)] |= near[max(0, -down) : height - max(0, down)]
    return found
