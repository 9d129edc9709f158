"""What finding and following patches in clips costs, and what other ways of OpenCV would.

    python -P benchmarks/tracks.py

One thread, CPU time, the least of a few runs, on a drawn clip of 5 s at 16 frames per second and 340 x 256: a textured
disc that moves before a textured ground, which moves as well.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from io import BytesIO
from typing import Any

import av
import cv2
import numpy as np

from ingest import motion
from ingest.tracks import TrackSettings, process
from seer_pipe.shards.members import member

WIDTH, HEIGHT, RADIUS, FRAMES, RUNS = 340, 256, 40, 80, 5
SIDE = HEIGHT // 2  # of a patch


def texture(height: int, width: int, seed: int) -> Any:
    noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return cv2.normalize(cv2.GaussianBlur(noise, (0, 0), 2), None, 0, 255, cv2.NORM_MINMAX)


def frames() -> list[Any]:
    ground, disc = texture(HEIGHT, WIDTH + FRAMES, 0), texture(2 * RADIUS, 2 * RADIUS, 1)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    drawn = []
    for number in range(FRAMES):
        frame = ground[:, number : number + WIDTH].copy()
        left, top = 30 + 2 * number, HEIGHT // 2 - RADIUS
        inside = (rows - top - RADIUS) ** 2 + (columns - left - RADIUS) ** 2 < RADIUS**2
        frame[inside] = disc[rows[inside] - top, columns[inside] - left]
        drawn.append(frame)
    return drawn


def encoded(drawn: list[Any]) -> bytes:
    file = BytesIO()
    with av.open(file, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=16, options={"preset": "veryfast", "crf": "21"})
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for frame in drawn:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, "rgb24")))
        container.mux(stream.encode(None))
    return file.getvalue()


def decode(clip: bytes) -> None:
    with av.open(BytesIO(clip)) as container:
        container.streams.video[0].thread_type = "NONE"
        for _ in container.decode(video=0):
            pass


def least(work: Callable[[], object]) -> float:
    """Milliseconds of CPU."""
    spent = []
    for _ in range(RUNS):
        began = time.process_time()
        work()
        spent.append(time.process_time() - began)
    return 1000 * min(spent)


def main() -> None:
    drawn = frames()
    clip, greys = encoded(drawn), [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in drawn]
    sample = member("k.mp4", clip) + member("k.json", b"{}")
    found = process(sample, TrackSettings()).tracks
    whole = least(lambda: process(sample, TrackSettings()))
    print(f"{FRAMES} frames: decoding {least(lambda: decode(clip)):.0f} ms, {len(found)} tracks {whole:.0f} ms")
    for name in ("FAST", "MEDIUM"):
        flow = cv2.DISOpticalFlow.create(getattr(cv2, f"DISOPTICAL_FLOW_PRESET_{name}"))
        spent = least(lambda flow=flow: flow.calc(greys[0], greys[1], None))
        print(f"flow, DIS {name.lower()}: {spent:.1f} ms a frame")
    farneback = least(lambda: cv2.calcOpticalFlowFarneback(greys[0], greys[1], None, 0.5, 3, 15, 3, 5, 1.2, 0))
    print(f"flow, Farneback: {farneback:.1f} ms a frame")
    (patch, *_) = motion.find(greys[0], greys[1], SIDE) or []
    left, top = (round(float(middle) - SIDE / 2) for middle in patch.centre)
    print(f"points: {least(lambda: motion.follow(patch, greys[0], greys[1])):.1f} ms a frame")
    mil = cv2.TrackerMIL.create()
    mil.init(drawn[0], (left, top, SIDE, SIDE))
    print(f"MIL: {least(lambda: mil.update(drawn[1])):.1f} ms a frame")


if __name__ == "__main__":
    main()
