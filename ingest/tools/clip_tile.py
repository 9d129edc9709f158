"""A clip at a glance: some of its frames, and its waveform beneath; a pair: its two pictures."""

from __future__ import annotations

from io import BytesIO

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from seer_pipe.shards import PAIR, members_of

FRAMES = 2  # along each side of a square of them
STRIP = 0.22  # of the tile, for the waveform beneath frames
GAP = 2  # pixels between frames
WAVE, PAPER = "#3465a4", "#f2f2f2"


def clip_tile(sample: bytes, side: int) -> Image.Image:
    """A picture of ``side`` pixels each way of a stored sample (a run of members)."""
    members = members_of(sample)
    tile = Image.new("RGB", (side, side), PAPER)
    strip = side if "mp4" not in members else round(side * STRIP) if "flac" in members else 0
    if "mp4" in members:
        part = (side - GAP * (FRAMES - 1)) // FRAMES, (side - strip - GAP * FRAMES) // FRAMES
        for number, frame in enumerate(_frames(members["mp4"], FRAMES**2)):
            frame.thumbnail(part)
            down, across = divmod(number, FRAMES)
            corner = across * (part[0] + GAP), down * (part[1] + GAP)
            tile.paste(frame, (corner[0] + (part[0] - frame.width) // 2, corner[1] + (part[1] - frame.height) // 2))
    if "flac" in members:
        _draw_wave(ImageDraw.Draw(tile), _samples(members["flac"]), side, side - strip)
    return tile


def pair_tile(sample: bytes, side: int) -> Image.Image:
    """The pictures of a stored pair beside each other, in a tile of ``side`` pixels each way."""
    members = members_of(sample)
    tile, part = Image.new("RGB", (side, side), PAPER), (side - GAP) // 2
    for number, name in enumerate(PAIR):
        with Image.open(BytesIO(members[name])) as picture:
            small = picture.convert("RGB")
        small.thumbnail((part, side))
        tile.paste(small, (number * (part + GAP), (side - small.height) // 2))
    return tile


def _frames(video: bytes, count: int) -> list[Image.Image]:
    """``count`` frames, from the middles of as many equal parts."""
    import av

    with av.open(BytesIO(video), "r") as container:
        stream = container.streams.video[0]
        stream.thread_type = "NONE"
        wanted = [(2 * number + 1) * stream.frames // (2 * count) for number in range(count)]
        found = [frame.to_image() for at, frame in enumerate(container.decode(stream)) for _ in range(wanted.count(at))]
    return found


def _samples(audio: bytes) -> npt.NDArray[np.float32]:
    """Of the first channel, from -1 to 1."""
    import av

    with av.open(BytesIO(audio), "r") as container:
        parts = [frame.to_ndarray()[0, :: frame.layout.nb_channels] for frame in container.decode(audio=0)]
    return np.concatenate(parts).astype(np.float32) / np.float32(32768)


def _draw_wave(draw: ImageDraw.ImageDraw, wave: npt.NDArray[np.float32], side: int, top: int) -> None:
    """A line a pixel, from the least to the most of its samples; the loudest of all fills the height."""
    middle, reach = (top + side) / 2, (side - top) / 2 - 2
    scale = reach / max(float(np.abs(wave).max()), 0.01)
    for x, part in enumerate(np.array_split(wave, side)):
        if part.size:
            draw.line((x, middle - scale * float(part.max()), x, middle - scale * float(part.min())), WAVE)
