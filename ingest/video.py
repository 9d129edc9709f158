"""The pictures of a source, cut into clips: mp4 with one H.264 stream of one frame rate."""

from __future__ import annotations

from collections.abc import Iterator
from fractions import Fraction
from io import BytesIO
from typing import TYPE_CHECKING, Any

import av
import numpy as np
from av.sidedata.sidedata import Type
from av.stream import Disposition
from av.video.frame import PictureType
from av.video.reformatter import ColorRange, Colorspace, Interpolation
from PIL import Image

from ingest.image import BadImage, phash
from ingest.media import Clip, MediaSettings, one_thread
from ingest.reasons import Reason

if TYPE_CHECKING:
    from av.container import InputContainer

KEY_FRAME = 16  # frames from one key frame to the next, at most
#: The same bytes each time: in one thread, and without the macroblock tree, which with AVX-512 gives other ones for the
#: same frames once in a hundred times.
X264 = {"preset": "veryfast", "crf": "21", "threads": "1", "x264-params": "no-mbtree=1:rc-lookahead=0"}
PICTURES = Disposition.attached_pic | Disposition.still_image | Disposition.timed_thumbnails  # cover art is no video
JITTER = Fraction(1, 500)  # s; timestamps are rounded, in Matroska to milliseconds


def stream_of(container: InputContainer) -> av.VideoStream | None:
    """The video of a container that a player would show."""
    stream = container.streams.best("video")
    if not isinstance(stream, av.VideoStream) or stream.disposition & PICTURES:
        return None
    return one_thread(stream)


def clips(container: InputContainer, settings: MediaSettings) -> tuple[Fraction, list[Clip]]:
    """When the first frame is displayed (s, by the clock of the container), and the clips, without sound."""
    stream = stream_of(container)
    assert stream is not None
    cutter, begin = _Cutter(settings, stream), None
    for frame, start, end in displayed(container, stream):
        begin = start if begin is None else begin
        cutter.show(frame, end - begin)
    if begin is None:
        raise BadImage(Reason.CORRUPT, "no frame that decodes")
    return begin, cutter.finish()


def measure(container: InputContainer) -> tuple[Fraction, int, tuple[int, int]]:
    """Frames per second, number of frames, and width and height (pixels) of a clip, by decoding it."""
    stream = stream_of(container)
    sizes = [(frame.width, frame.height) for frame in container.decode(stream)] if stream is not None else []
    if stream is None or not sizes or len(set(sizes)) > 1 or not stream.average_rate:
        raise BadImage(Reason.CORRUPT, "no frames of one size and rate")
    return Fraction(stream.average_rate.numerator, stream.average_rate.denominator), len(sizes), sizes[0]


def displayed(container: InputContainer, stream: av.VideoStream) -> Iterator[tuple[av.VideoFrame, Fraction, Fraction]]:
    """Every frame, and from when to when it is displayed (s). One whose time goes back is not displayed at all."""
    held: av.VideoFrame | None = None
    start = end = Fraction(0)
    for frame in container.decode(stream):
        if frame.is_corrupt:
            raise BadImage(Reason.CORRUPT, f"video: damaged after {float(end - start):.2f} s")
        base = Fraction(frame.time_base.numerator, frame.time_base.denominator) if frame.time_base else JITTER
        time = end if frame.pts is None else frame.pts * base
        if held is not None:
            time = max(time, start)
            yield held, start, time
        rate = stream.average_rate
        length = frame.duration * base or (1 / Fraction(rate.numerator, rate.denominator) if rate else Fraction(1, 25))
        held, start, end = frame, time, time + length
    if held is not None:
        yield held, start, end


class _Cutter:
    """Takes frames as they are displayed, and gives clips."""

    def __init__(self, settings: MediaSettings, stream: av.VideoStream) -> None:
        self._settings, self._stream = settings, stream
        self._clips: list[Clip] = []
        self._shown = 0  # frames put out
        self._size: tuple[int, int] | None = None
        self._turn: _Turn | None = None
        self._writer: _Writer | None = None

    def show(self, frame: av.VideoFrame, end: Fraction) -> None:
        """Put out what is displayed until ``end`` (s, from the first frame on)."""
        self._settings.check_size(frame.width, frame.height)
        if end > self._settings.max_seconds:
            raise BadImage(Reason.TOO_MANY_SECONDS, f"more than {self._settings.max_seconds:g} s")
        self._last, scaled = frame, None
        while self._shown / self._settings.rate + JITTER < end:
            scaled = self._scaled(frame) if scaled is None else scaled
            self._put(scaled)

    def finish(self) -> list[Clip]:
        """All clips; a rest that is too short is left off."""
        if not self._shown:
            self._put(self._scaled(self._last))
        if self._writer is not None:
            self._close()
        if not self._clips:
            raise BadImage(Reason.TOO_SHORT, f"{float(self._shown / self._settings.rate):.2f} s")
        return self._clips

    def _put(self, frame: av.VideoFrame) -> None:
        if self._writer is None:
            self._writer = _Writer(frame, self._settings)
        self._writer.add(frame)
        self._shown += 1
        if self._writer.frames == self._settings.clip_frames:
            self._close()

    def _close(self) -> None:
        writer, self._writer = self._writer, None
        assert writer is not None
        rate = self._settings.rate
        data = writer.close()
        if writer.frames < self._settings.min_seconds * rate:
            return
        self._clips.append(
            Clip(
                video=data,
                audio=None,
                start=float((self._shown - writer.frames) / rate),
                duration=float(writer.frames / rate),
                frame_rate=float(rate),
                frames=writer.frames,
                width=writer.width,
                height=writer.height,
                audio_rate=None,
                phash=writer.phash,
            )
        )

    def _scaled(self, frame: av.VideoFrame) -> av.VideoFrame:
        """Upright, of square pixels, scaled down to the short side, of even sides, in 8-bit BT.601."""
        if self._size is None:  # the first frame's holds for all
            self._turn = _turn(frame)
            swaps = self._turn is not None and self._turn.swaps
            self._size = _size(frame, swaps, self._stream, self._settings)
        (width, height), turn = self._size, self._turn
        if turn is None:
            return _converted(frame, width, height, "yuv420p")
        sides = (height, width) if turn.swaps else (width, height)
        pixels = turn.applied(_converted(frame, *sides, "rgb24").to_ndarray())
        return _converted(av.VideoFrame.from_ndarray(np.ascontiguousarray(pixels), "rgb24"), width, height, "yuv420p")


def _converted(frame: av.VideoFrame, width: int, height: int, format: str) -> av.VideoFrame:
    return frame.reformat(
        width, height, format,
        dst_colorspace=Colorspace.ITU601, dst_color_range=ColorRange.MPEG,
        interpolation=Interpolation.BICUBIC, threads=1,
    )  # fmt: skip


def _size(frame: av.VideoFrame, swaps: bool, stream: av.VideoStream, settings: MediaSettings) -> tuple[int, int]:
    """Width and height to store, of square pixels and even."""
    aspect = stream.sample_aspect_ratio
    width, height = frame.width * float(aspect or 1), float(frame.height)
    settings.check_size(round(width), round(height))
    if swaps:
        width, height = height, width
    factor = 1.0 if settings.short_side is None else min(1.0, settings.short_side / min(width, height))
    return max(2, round(width * factor / 2) * 2), max(2, round(height * factor / 2) * 2)


class _Turn:
    """What a display matrix asks for, to the nearest right angle: x' = a x + c y, y' = b x + d y.

    So defined in FFmpeg's libavutil/display.h.
    """

    def __init__(self, a: int, b: int, c: int, d: int) -> None:
        self.swaps = abs(a) < abs(b)
        across, down = (c, b) if self.swaps else (a, d)
        self._steps = (-1 if down < 0 else 1), (-1 if across < 0 else 1)
        self.nothing = not self.swaps and self._steps == (1, 1)

    def applied(self, pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        """[h, w, 3] as it is to be seen."""
        turned = pixels.swapaxes(0, 1) if self.swaps else pixels
        return turned[:: self._steps[0], :: self._steps[1]]


def _turn(frame: av.VideoFrame) -> _Turn | None:
    """What a frame asks for. To be asked of one alone: its side data and it refer to each other, and both stay until a
    garbage collection."""
    found: Any = frame.side_data  # a mapping of its own making
    if Type.DISPLAYMATRIX not in found:
        return None
    numbers = np.frombuffer(bytes(found[Type.DISPLAYMATRIX]), np.int32)
    turn = _Turn(*(int(numbers[place]) for place in (0, 1, 3, 4)))
    return None if turn.nothing else turn


class _Writer:
    """One clip in the making."""

    def __init__(self, frame: av.VideoFrame, settings: MediaSettings) -> None:
        self.width, self.height, self.frames = frame.width, frame.height, 0
        self.phash: int | None = None
        self._middle = settings.clip_frames // 2
        self._file = BytesIO()
        self._container = av.open(self._file, "w", format="mp4")
        self._stream = self._container.add_stream("libx264", rate=settings.rate, options=dict(X264))
        self._base = 1 / settings.rate
        context = self._stream.codec_context
        context.width, context.height, context.pix_fmt = frame.width, frame.height, "yuv420p"
        context.time_base = self._base
        context.gop_size, context.max_b_frames = KEY_FRAME, 0
        context.thread_count = 1
        context.colorspace, context.color_range = Colorspace.ITU601, ColorRange.MPEG

    def add(self, frame: av.VideoFrame) -> None:
        if self.frames <= self._middle:  # of the middle of a full clip; of a shorter one that of its last frame
            self._looked_at = frame
        frame.pts, frame.time_base, frame.pict_type = self.frames, self._base, PictureType.NONE
        self._container.mux(self._stream.encode(frame))
        self.frames += 1

    def close(self) -> bytes:
        self._container.mux(self._stream.encode(None))
        self._container.close()
        self.phash = phash(Image.fromarray(self._looked_at.to_ndarray()[: self.height]))
        return self._file.getvalue()
