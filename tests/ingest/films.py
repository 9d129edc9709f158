"""Videos and sounds, drawn."""

from __future__ import annotations

from collections.abc import Sequence
from fractions import Fraction
from io import BytesIO
from typing import Any

import av
import numpy as np

RED, GREEN, BLUE, WHITE = (200, 30, 30), (30, 180, 30), (30, 30, 200), (230, 230, 230)
CODECS = {
    "mp4": ("libx264", "aac"),
    "mov": ("mpeg4", "pcm_s16le"),
    "matroska": ("libx264", "flac"),
    "webm": ("libvpx-vp9", "libopus"),
    "avi": ("mpeg4", "libmp3lame"),
    "mpegts": ("libx264", "aac"),
}
GREY = 8  # levels between the greys of two neighbouring numbers


def numbered(number: int, width: int, height: int) -> np.ndarray[Any, Any]:
    """A frame that says its number, from 0 to 28, by its grey."""
    return np.full((height, width, 3), 16 + GREY * number, np.uint8)


def number_of(frame: av.VideoFrame) -> int:
    """The number that ``numbered`` drew."""
    return round((float(frame.to_ndarray(format="rgb24").mean()) - 16) / GREY)


def corners(number: int, width: int, height: int) -> np.ndarray[Any, Any]:
    """Red, green; blue, white."""
    pixels = np.zeros((height, width, 3), np.uint8)
    pixels[: height // 2, : width // 2], pixels[: height // 2, width // 2 :] = RED, GREEN
    pixels[height // 2 :, : width // 2], pixels[height // 2 :, width // 2 :] = BLUE, WHITE
    return pixels


def tone(seconds: float, rate: int, channels: int = 1, hertz: float = 440.0) -> np.ndarray[Any, Any]:
    """int16 [samples, channels]"""
    wave = np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate) * 12_000
    return np.repeat(wave.astype(np.int16)[:, None], channels, axis=1)


def film(
    times: Sequence[float] = (),
    *,
    draw: Any = numbered,
    size: tuple[int, int] = (96, 64),
    rate: int = 25,
    sound: np.ndarray[Any, Any] | None = None,
    sound_at: float = 0.0,
    sound_rate: int = 48_000,
    format: str = "mp4",
    codecs: tuple[str, str] | None = None,
    change: Any = None,
) -> bytes:
    """A file with a frame displayed from each of ``times`` (s) on, and ``sound`` from ``sound_at`` on.

    ``change`` is called with the video's stream before anything is encoded.
    """
    file = BytesIO()
    video, audio = codecs or CODECS[format]
    with av.open(file, "w", format=format) as container:
        base = Fraction(1, 1000)
        if times:
            seen = container.add_stream(video, rate=rate)
            seen.width, seen.height, seen.pix_fmt = *size, "yuv420p"
            seen.codec_context.time_base = Fraction(1, rate) if format == "avi" else base
            if video == "libx264":
                seen.options = {"preset": "ultrafast", "crf": "12"}
            if change is not None:
                change(seen)
        if sound is not None:
            layout = "mono" if sound.shape[1] == 1 else "stereo"
            heard = container.add_stream(audio, rate=sound_rate, layout=layout)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(draw(number, *size), "rgb24")
            frame.time_base = seen.codec_context.time_base
            frame.pts = round(time / frame.time_base)
            frame.duration = round(Fraction(1, rate) / frame.time_base)
            container.mux(seen.encode(frame))
        if times:
            container.mux(seen.encode(None))
        if sound is not None:
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(sound).reshape(1, -1), "s16", layout)
            frame.sample_rate, frame.time_base = sound_rate, Fraction(1, sound_rate)
            frame.pts = round(sound_at * sound_rate)
            container.mux(heard.encode(frame))
            container.mux(heard.encode(None))
    return file.getvalue()


def frames_of(data: bytes) -> list[av.VideoFrame]:
    with av.open(BytesIO(data)) as container:
        return list(container.decode(video=0))


def samples_of(data: bytes) -> np.ndarray[Any, Any]:
    """int16 [samples, channels] of a FLAC."""
    with av.open(BytesIO(data)) as container:
        found = [frame.to_ndarray().reshape(-1, frame.layout.nb_channels) for frame in container.decode(audio=0)]
    return np.concatenate(found)
