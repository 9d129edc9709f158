"""Clips, sounds and pairs of both, drawn for tests."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path

import av
import numpy as np
import numpy.typing as npt
from PIL import Image

from seer_pipe.quickstart.draw import KINDS, picture
from seer_pipe.shards import ShardWriter, write_manifest
from seer_pipe.store import open_store


def tone(hertz: float, seconds: float = 1.0, rate: int = 16_000) -> npt.NDArray[np.float32]:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def flac(wave: npt.NDArray[np.float32], rate: int = 16_000) -> bytes:
    """Of a sound [samples] or [channels, samples] with amplitudes up to 1."""
    channels = np.atleast_2d(wave)
    levels = np.round(channels * 32767).astype(np.int16)
    out = io.BytesIO()
    with av.open(out, "w", format="flac") as container:
        stream = container.add_stream("flac", rate=rate, layout={1: "mono", 2: "stereo"}[len(levels)])
        frame = av.AudioFrame.from_ndarray(levels.T.reshape(1, -1), "s16", stream.layout.name)
        frame.sample_rate = rate
        for packet in [*stream.encode(frame), *stream.encode(None)]:
            container.mux(packet)
    return out.getvalue()


def mp4(frames: Sequence[npt.NDArray[np.uint8]], rate: int = 16, **options: str) -> bytes:
    """H.264 of frames [h, w, 3]."""
    out = io.BytesIO()
    with av.open(out, "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=rate, options={"g": "16", **options})
        stream.height, stream.width, _ = frames[0].shape
        stream.pix_fmt = "yuv420p"
        for frame in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(stream.encode(None))
    return out.getvalue()


def jpeg(image: Image.Image) -> bytes:
    out = io.BytesIO()
    image.save(out, "JPEG")
    return out.getvalue()


Members = dict[str, bytes]


def write_pairs(
    root: Path, samples: Sequence[tuple[str, Members, int, int]], shards: int = 1, media: str = "image"
) -> Path:
    """A shard set of samples: source, members, width, height; ``media``: what they are."""
    store = open_store(root)
    paths = [f"{shard:05d}.tar" for shard in range(shards)]
    for shard, path in enumerate(paths):
        writer = ShardWriter(store, path)
        for number, (source, members, width, height) in list(enumerate(samples))[shard::shards]:
            writer.add_members(f"{number:06d}", members, source=source, width=width, height=height)
        writer.commit()
    write_manifest(store, paths, media=media)
    return root


def make_pairs(root: Path, count: int, shards: int = 2, hertz: Callable[[int], float] = lambda n: 300 + 20 * n) -> Path:
    """Drawn pictures with a second of a tone each."""
    kinds, samples = sorted(KINDS), []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        image = picture(kind, number)
        members = {"jpg": jpeg(image), "flac": flac(tone(hertz(number)))}
        samples.append((f"{kind}/{number}.jpg", members, image.width, image.height))
    return write_pairs(root, samples, shards)


def make_clips(root: Path, count: int, shards: int = 2, *, sounds: bool = False) -> Path:
    """A set of clips: a second at 16 frames per second, over which a window moves across a drawn picture; with a second
    of a tone each."""
    kinds, samples, side = sorted(KINDS), [], 64
    for number in range(count):
        kind = kinds[number % len(kinds)]
        pixels = np.asarray(picture(kind, number))
        tops, lefts = (np.linspace(0, length - side, 16).astype(int) for length in pixels.shape[:2])
        frames = [pixels[top : top + side, left : left + side] for top, left in zip(tops, lefts, strict=True)]
        sound = {"flac": flac(tone(300 + 20 * number))} if sounds else {}
        samples.append((f"{kind}/{number}.mp4", {"mp4": mp4(frames), **sound, "json": b"{}"}, side, side))
    return write_pairs(root, samples, shards, media="video")


def make_tracks(root: Path, count: int, shards: int = 2) -> Path:
    """A set of pairs: two drawn pictures of one kind and size each."""
    kinds, samples = sorted(KINDS), []
    for number in range(count):
        kind = kinds[number % len(kinds)]
        first = picture(kind, number)
        last = picture(kind, count + number).resize(first.size)
        members = {"0.jpg": jpeg(first), "1.jpg": jpeg(last), "json": b"{}"}
        samples.append((f"{kind}/{number}.mp4#{number:06d}", members, first.width, first.height))
    return write_pairs(root, samples, shards, media="pair")
