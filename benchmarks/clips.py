"""What cutting videos into clips costs, beside decoding them alone.

    python -P benchmarks/clips.py

One thread, CPU time, the least of a few runs: ``seer-ingest``'s own function from bytes to clips, against PyAV that
decodes the same bytes, video and sound, and throws the frames away.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from fractions import Fraction
from io import BytesIO

import av
import numpy as np
from PIL import Image

from ingest.media import MediaSettings, process

SECONDS, RATE, RUNS = 20, 25, 3
SIZES = ((640, 360), (1920, 1080))


def film(width: int, height: int) -> bytes:
    """A picture with detail of all sizes that moves, with a tone: H.264 and AAC in MP4."""
    file, wide = BytesIO(), texture(2 * width, height)
    with av.open(file, "w", format="mp4") as container:
        seen = container.add_stream("libx264", rate=RATE, options={"preset": "veryfast"})
        seen.width, seen.height, seen.pix_fmt = width, height, "yuv420p"
        heard = container.add_stream("aac", rate=48_000, layout="stereo")
        for number in range(SECONDS * RATE):
            pixels = wide[:, 2 * number % width :][:, :width]
            frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24")
            frame.pts, frame.time_base = number, Fraction(1, RATE)
            container.mux(seen.encode(frame))
        container.mux(seen.encode(None))
        wave = (np.sin(np.arange(SECONDS * 48_000) / 17) * 9000).astype(np.int16).repeat(2)[None]
        sound = av.AudioFrame.from_ndarray(wave, "s16", "stereo")
        sound.sample_rate, sound.pts, sound.time_base = 48_000, 0, Fraction(1, 48_000)
        container.mux(heard.encode(sound))
        container.mux(heard.encode(None))
    return file.getvalue()


def texture(width: int, height: int) -> np.ndarray:
    """uint8 [height, width, 3]: noise of every octave, each of half the contrast of the one before."""
    rng, total = np.random.default_rng(0), np.zeros((height, width, 3))
    for octave in range(8):
        coarse = rng.integers(0, 256, (4 << octave, 8 << octave, 3), dtype=np.uint8)
        total += np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)) / 2 ** (
            octave + 1
        )
    return total.astype(np.uint8)


def decoded(data: bytes) -> None:
    for kind in ("video", "audio"):
        with av.open(BytesIO(data), "r") as container:
            stream = container.streams.best(kind)
            stream.codec_context.thread_type, stream.codec_context.thread_count = "NONE", 1
            for _ in container.decode(stream):
                pass


def least(work: Callable[[], object]) -> float:
    """CPU seconds."""
    took = []
    for _ in range(RUNS):
        start = time.process_time()
        work()
        took.append(time.process_time() - start)
    return min(took)


def main() -> None:
    for width, height in SIZES:
        data = film(width, height)
        alone, cut = least(lambda data=data: decoded(data)), least(lambda data=data: process(data, MediaSettings()))
        made = process(data, MediaSettings())
        sizes = [sum(len(clip.members[name]) for clip in made.clips) / len(made.clips) for name in ("mp4", "flac")]
        print(
            f"{width} x {height}, {len(data) / SECONDS / 1e6:.2f} MB/s: {len(made.clips)} clips of 5 s, "
            f"{sizes[0] / 1e3:.0f} kB mp4 and {sizes[1] / 1e3:.0f} kB flac each; decoding alone {alone:.2f} s of CPU, "
            f"cutting {cut:.2f} s ({cut / alone:.2f} times as much), {len(made.clips) / cut:.1f} clips/s and core"
        )


if __name__ == "__main__":
    main()
