"""Patches that move apart from the camera: found between two frames, and followed from frame to frame.

After Wang and Gupta (2015, arXiv 1505.00687, section 3): a pixel moves where its flow is more than half a pixel off
what the motion of the camera, a homography, makes of it; a patch is the square that holds the most of such pixels; a
frame of which three quarters move shows the camera, or a cut. There the flow is that of SURF points on improved dense
trajectories; here it is dense, by DIS (Kroeger et al. 2016, arXiv 1603.03590).

There KCF follows a patch, which the wheels of OpenCV on PyPI lack: it is in contrib. Of what they have, MIL takes 20
times as long as the flow of points (docs/tracks.md) and never says that it lost what it follows; the others need
networks. So a patch is followed by its moving points: Lucas-Kanade forward and back again, as in Median Flow
(Kalal et al. 2010, Forward-Backward Error), and it has moved by the median of those that always came back.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

cv2.setNumThreads(1)  # a worker is one process for one core

Grey = npt.NDArray[Any]  # uint8 [h, w]
Points = npt.NDArray[Any]  # float32 [n, 2], x and y in pixels
Mask = npt.NDArray[np.bool_]
Floats = npt.NDArray[Any]

MOVING = 0.5  # pixels from one frame to the next, beside the camera's motion
LEAST, MOST = 0.1, 0.75  # share of the pixels of a patch that moves at least, and of a frame at most
STEP = 8  # pixels between the flow vectors that the camera's motion is fitted to
POINTS, FEWEST = 64, 8  # of a patch: that are followed, and without which it is lost
RETURN = 1.0  # pixels that a point may miss its place by, when it is followed back
APART, STRETCH = 1.0, 0.15  # how far a point may be off the median step: pixels, and a share of the step
SHIFTS = 10  # of a patch to the middle of what moves in it
WINDOW = (15, 15)  # pixels that a point is recognised by


@dataclass(frozen=True)
class Patch:
    """A square that moves, and those points of it that are followed."""

    start: Floats  # [2] x, y in pixels: the middle in the first frame
    seeds: Points  # where the points were then
    points: Points  # where they are

    @property
    def centre(self) -> Floats:
        """Its middle now: as far from the start as the median of the points is."""
        middle: Floats = self.start + np.median(self.points - self.seeds, axis=0)
        return middle


def find(before: Grey, after: Grey, side: int) -> list[Patch] | None:
    """The patches of ``side`` pixels that move from ``before`` on, that of which most moves first; none shares a
    moving pixel with another. None where too much of the frame moves."""
    dense = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow = dense.calc(before, after, None)  # type: ignore[call-overload]
    camera = _camera(flow)
    if camera is None:
        return None
    rows, columns = np.indices(before.shape, np.float32)
    everywhere = np.stack([columns, rows], axis=-1)
    moving = _apart(everywhere, everywhere + flow, camera) > MOVING
    if moving.mean() > MOST:
        return None
    found = []
    while (corner := _busiest(moving, side)) is not None:
        left, top = corner
        inside = np.zeros_like(moving)
        inside[top : top + side, left : left + side] = moving[top : top + side, left : left + side]
        points = cv2.goodFeaturesToTrack(before, POINTS, 0.01, 3, mask=inside.astype(np.uint8))
        if points is not None:
            points = points.reshape(-1, 2)
            there, good = _followed(before, after, points)
            good &= _apart(points, there, camera) > MOVING  # flow blurs what moves into what is beside it
            points = points[_together(points, there, good)]
            if len(points) >= FEWEST:
                found.append(Patch(np.array([left, top]) + side / 2, points, points))
        moving &= ~inside
    return found


def follow(patch: Patch, before: Grey, after: Grey) -> Patch | None:
    """The patch in the next frame; None where it is lost."""
    there, good = _followed(before, after, patch.points)
    good = _together(patch.points, there, good)
    return Patch(patch.start, patch.seeds[good], there[good]) if good.sum() >= FEWEST else None


def _camera(flow: Floats) -> Floats | None:
    """The homography [3, 3] that most of a flow [h, w, 2] follows; None where there is none."""
    height, width, _ = flow.shape
    rows, columns = np.mgrid[STEP // 2 : height : STEP, STEP // 2 : width : STEP]
    places = np.stack([columns, rows], axis=-1).reshape(-1, 2).astype(np.float32)
    found, _ = cv2.findHomography(places, places + flow[rows, columns].reshape(-1, 2), cv2.RANSAC, MOVING)
    return found


def _apart(came: Floats, there: Floats, camera: Floats) -> Floats:
    """How far points [..., 2] are from where the camera's motion takes them."""
    moved = cv2.perspectiveTransform(came.reshape(-1, 1, 2), camera).reshape(came.shape)
    return np.linalg.norm(there - moved, axis=-1)


def _busiest(moving: Mask, side: int) -> tuple[int, int] | None:
    """Left and top of the square of which most moves, around the middle of that; None where too little does."""
    sums = cv2.integral(moving.astype(np.uint8))
    inside = sums[side:, side:] - sums[:-side, side:] - sums[side:, :-side] + sums[:-side, :-side]
    if not inside.size or inside.max() < LEAST * side**2:
        return None
    top, left = divmod(int(inside.argmax()), inside.shape[1])
    for _ in range(SHIFTS):
        rows, columns = np.nonzero(moving[top : top + side, left : left + side])
        down, across = (round(float(places.mean()) - (side - 1) / 2) for places in (rows, columns))
        now = max(0, min(top + down, inside.shape[0] - 1)), max(0, min(left + across, inside.shape[1] - 1))
        if now == (top, left) or inside[now] < LEAST * side**2:
            break
        top, left = now
    return left, top


def _together(came: Points, there: Points, good: Mask) -> Mask:
    """Those of the ``good`` points that go about as far as their median does: others hang on something else."""
    steps = there - came
    if not good.any():
        return good
    middle = np.median(steps[good], axis=0)
    near: Mask = np.linalg.norm(steps - middle, axis=1) < APART + STRETCH * float(np.linalg.norm(middle))
    return good & near


def _followed(before: Grey, after: Grey, points: Points) -> tuple[Points, Mask]:
    """Where ``points`` are in the next frame, and whether each was found there and came back to its place."""
    there, seen, _ = cv2.calcOpticalFlowPyrLK(before, after, points, None, winSize=WINDOW)  # type: ignore[call-overload]
    back, found, _ = cv2.calcOpticalFlowPyrLK(after, before, there, None, winSize=WINDOW)  # type: ignore[call-overload]
    within = ((there >= 0) & (there < after.shape[::-1])).all(axis=1)
    returned = np.linalg.norm(back - points, axis=1) < RETURN
    return there, (seen & found).ravel().astype(bool) & within & returned
