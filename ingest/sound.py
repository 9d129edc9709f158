"""The sound of a source, cut into clips: FLAC of 16 bits, mono or stereo."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from itertools import pairwise, repeat
from typing import TYPE_CHECKING, NamedTuple

import av
import numpy as np
import numpy.typing as npt

from ingest.image import BadImage
from ingest.media import Clip, MediaSettings, one_thread
from ingest.reasons import Reason

if TYPE_CHECKING:
    from av.container import InputContainer

GAP = 0.1  # s by which timestamps and samples may differ before sound is taken to be missing, or to be there twice


class Piece(NamedTuple):
    samples: npt.NDArray[np.int16]  # [n, channels]
    heard: bool  # of the source; or silence, where it has nothing


def stream_of(container: InputContainer) -> av.AudioStream | None:
    """The sound of a container that a player would play."""
    stream = container.streams.best("audio", related=container.streams.best("video"))
    return one_thread(stream) if isinstance(stream, av.AudioStream) else None


def clips(container: InputContainer, settings: MediaSettings) -> list[Clip]:
    """The clips of a source of which nothing but the sound is stored; a rest that is too short is left off."""
    rate, found, done = settings.audio_rate, list[Clip](), 0
    for writer in _cut(pieces(container, settings, None), repeat(round(settings.clip_seconds * rate)), rate):
        if writer.samples >= settings.min_seconds * rate:
            start, duration = done / rate, writer.samples / rate
            found.append(Clip(None, writer.close(), start, duration, audio_rate=rate))
        done += writer.samples
    if not found:
        raise BadImage(Reason.TOO_SHORT, f"{done / rate:.2f} s")
    return found


def beside(container: InputContainer, settings: MediaSettings, begin: Fraction, cut: Sequence[Clip]) -> list[Clip]:
    """``cut``, each clip with the sound of its time, exactly as long as it; without, where the source has none then.

    ``begin``: when the first of them begins (s, by the clock of the container).
    """
    rate = settings.audio_rate
    bounds = [0, *(round((clip.start + clip.duration) * rate) for clip in cut)]
    lengths = [end - start for start, end in pairwise(bounds)]
    writers = _cut(pieces(container, settings, begin), iter(lengths), rate)
    found = []
    for clip, length in zip(cut, lengths, strict=True):
        writer = next(writers, None)
        if writer is not None and writer.heard:
            writer.add(Piece(np.zeros((length - writer.samples, writer.channels), np.int16), heard=False))
            clip = replace(clip, audio=writer.close(), audio_rate=rate)
        found.append(clip)
    deque(writers, 0)  # what follows is decoded too, so that damage is found
    return found


def measure(container: InputContainer) -> tuple[int, int]:
    """Hz and number of samples of a sound, by decoding it."""
    stream = stream_of(container)
    if stream is None:
        raise BadImage(Reason.CORRUPT, "no sound")
    return stream.codec_context.sample_rate, sum(frame.samples for frame in container.decode(stream))


def pieces(container: InputContainer, settings: MediaSettings, begin: Fraction | None) -> Iterator[Piece]:
    """All sound from ``begin`` (s, by the clock of the container) on, or from its own beginning, without a gap."""
    stream = stream_of(container)
    assert stream is not None
    rate, at = settings.audio_rate, 0  # samples given so far
    for frame in _resampled(container, stream, rate):
        samples = frame.to_ndarray().astype(np.int16, copy=False).reshape(-1, frame.layout.nb_channels)
        if frame.pts is not None and frame.time_base is not None:
            time = frame.pts * Fraction(frame.time_base.numerator, frame.time_base.denominator)
            begin = time if begin is None else begin
            off = round((time - begin) * rate) - at
            if at + off > settings.max_seconds * rate:
                raise BadImage(Reason.TOO_MANY_SECONDS, f"more than {settings.max_seconds:g} s")
            if off < 0 and (at == 0 or off < -GAP * rate):
                samples = samples[-off:]
            elif off > 0 and (at == 0 or off > GAP * rate):
                for start in range(0, off, rate):
                    yield Piece(np.zeros((min(rate, off - start), samples.shape[1]), np.int16), heard=False)
                at += off
        if len(samples):
            yield Piece(samples, heard=True)
            at += len(samples)


def _resampled(container: InputContainer, stream: av.AudioStream, rate: int) -> Iterator[av.AudioFrame]:
    """Packed samples of 16 bits at ``rate`` Hz, in the first frame's number of channels, at most two."""
    resampler: av.AudioResampler | None = None
    layout, came_as = "", None
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise BadImage(Reason.CORRUPT, f"sound: damaged after {frame.time or 0:.2f} s")
        layout = layout or ("mono" if frame.layout.nb_channels == 1 else "stereo")
        kind = (frame.sample_rate, frame.format.name, frame.layout.name)
        if kind != came_as:  # it may change on the way
            if resampler is not None:
                yield from resampler.resample(None)
            resampler, came_as = av.AudioResampler("s16", layout, rate), kind
        assert resampler is not None
        yield from resampler.resample(frame)
    if resampler is None:
        raise BadImage(Reason.CORRUPT, "no sound that decodes")
    yield from resampler.resample(None)


def _cut(found: Iterator[Piece], lengths: Iterator[int], rate: int) -> Iterator[_Writer]:
    """Pieces written to clips of so many samples each; the last may have fewer. What is left over is read, too."""
    writer: _Writer | None = None
    length = 0
    for piece in found:
        rest = piece.samples
        while len(rest):
            if writer is None:
                length = next(lengths, 0)
                if not length:
                    break
                writer = _Writer(rest.shape[1], rate)
            here = length - writer.samples
            writer.add(Piece(rest[:here], piece.heard))
            rest = rest[here:]
            if writer.samples == length:
                yield writer
                writer = None
    if writer is not None:
        yield writer


class _Writer:
    """One clip in the making."""

    def __init__(self, channels: int, rate: int) -> None:
        self.channels, self.samples, self.heard = channels, 0, False
        self._rate, self._layout = rate, "mono" if channels == 1 else "stereo"
        self._file = BytesIO()
        self._container = av.open(self._file, "w", format="flac")
        self._stream = self._container.add_stream("flac", rate=rate)
        self._stream.codec_context.layout = self._layout
        self._stream.codec_context.format = "s16"

    def add(self, piece: Piece) -> None:
        if len(piece.samples):
            frame = av.AudioFrame.from_ndarray(np.ascontiguousarray(piece.samples).reshape(1, -1), "s16", self._layout)
            frame.sample_rate, frame.pts, frame.time_base = self._rate, self.samples, Fraction(1, self._rate)
            self._container.mux(self._stream.encode(frame))
            self.samples += len(piece.samples)
            self.heard |= piece.heard

    def close(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._file.getvalue()
