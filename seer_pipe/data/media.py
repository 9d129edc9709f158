"""Samples of several members: of clips and pictures with their sound one picture, or several frames, and the sound
around its moment; of clips alone several frames; of pairs both pictures.

A picture comes out as the bytes of an image, so what follows is what any image goes through: a JPEG as it is stored, a
frame of a clip as PPM, which is its pixels behind a line of text. PyAV decodes, by one thread for each sample.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from fractions import Fraction
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seer_pipe.config import Frames, Sound
from seer_pipe.data.chunks import Encoded
from seer_pipe.data.dali import BadImages
from seer_pipe.data.sound import spectrograms
from seer_pipe.data.views import Moments
from seer_pipe.errors import UserError
from seer_pipe.shards import PAIR, is_run, members_of

#: Members by their extensions; of several the first.
PICTURES = ("jpg", "jpeg", "png", "webp")
CLIPS = ("mp4",)
SOUNDS = ("flac", "wav", "ogg", "mp3")

Members = Mapping[str, bytes]
Wave = npt.NDArray[np.float32]  # [samples], mono, amplitudes up to 1
Pixels = npt.NDArray[np.uint8]  # [h, w, 3]
T = TypeVar("T")


class Media:
    """Opens samples that are runs of members, by ``threads``: the sound, and one picture or the ``frames`` of a clip.
    UserError where there is no PyAV."""

    def __init__(self, sound: Sound, frames: Frames | None = None, *, device: str = "cpu", threads: int = 2) -> None:
        need_av()
        self.sound, self._frames, self._device = sound, frames, torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="media")

    def __call__(self, samples: Sequence[Encoded], moments: Moments) -> tuple[list[list[Encoded]], Tensor]:
        """The pictures of n samples at their moments, encoded: of several frames the first ones, the second ones, …

        And the spectrograms [n, *Sound.shape] of the sounds around these, on the device. Raises BadImages for samples
        that lack one of them, or of which one is damaged.
        """
        opened = _usable(list(self._pool.map(self._open, samples, moments.at, moments.shift, moments.gain)))
        return _in_turn([pictures for pictures, _ in opened]), self._heard(np.stack([wave for _, wave in opened]))

    def close(self) -> None:
        self._pool.shutdown()

    def _open(self, sample: Encoded, at: float, shift: float, gain: float) -> tuple[list[Encoded], Wave] | str:
        """Of one sample, or why they cannot be had."""

        def found(members: Members) -> tuple[list[Encoded], Wave]:
            wave = decode_sound(_chosen(members, SOUNDS, "sound"), self.sound.rate)
            pictures, moment = pictures_at(members, at, self._frames)
            if moment is None:
                moment = at * len(wave) / self.sound.rate
            return pictures, (gain * window(wave, moment + shift, self.sound)).astype(np.float32)

        return _opened(sample, found)

    def _heard(self, waves: npt.NDArray[np.float32]) -> Tensor:
        if self._stream is None:
            return spectrograms(torch.from_numpy(waves), self.sound)
        with torch.cuda.stream(self._stream):  # so that it waits for nothing else
            heard = spectrograms(torch.from_numpy(waves).to(self._device), self.sound)
            heard.record_stream(torch.cuda.default_stream(self._device))  # where it will be used
            self._stream.synchronize()
        return heard


class Clips:
    """Opens samples that are clips, by ``threads``. UserError where there is no PyAV."""

    def __init__(self, frames: Frames, *, threads: int = 2) -> None:
        need_av()
        self._frames = frames
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="clips")

    def __call__(self, samples: Sequence[Encoded], shares: npt.NDArray[np.float64]) -> list[list[Encoded]]:
        """The first frames of n clips, encoded, the second ones, …; `decode_frames` says which. Raises BadImages for
        samples that are no clips or are damaged."""

        def opened(sample: Encoded, at: float) -> list[Encoded] | str:
            return _opened(sample, lambda members: pictures_at(members, at, self._frames)[0])

        return _in_turn(_usable(list(self._pool.map(opened, samples, shares))))

    def close(self) -> None:
        self._pool.shutdown()


def _opened(sample: Encoded, found: Callable[[Members], T]) -> T | str:
    """What is found among a sample's members, or why it cannot be had."""
    try:
        return found(members_of(sample.data))
    except (need_av().FFmpegError, IndexError) as error:
        return f"does not decode: {' '.join(str(error).split())}"
    except ValueError as error:
        return str(error)


def _usable(found: Sequence[T | str]) -> list[T]:
    """What was found of n samples. BadImages for those that have a reason in its place."""
    if faults := {i: one for i, one in enumerate(found) if isinstance(one, str)}:
        raise BadImages(faults)
    return [one for one in found if not isinstance(one, str)]


def _in_turn(pictures: Sequence[Sequence[Encoded]]) -> list[list[Encoded]]:
    """Of the pictures of each sample the first ones, the second ones, …"""
    return [list(ones) for ones in zip(*pictures, strict=True)]


def pictures_at(members: Members, at: float, frames: Frames | None = None) -> tuple[list[Encoded], float | None]:
    """The picture at the share ``at`` of a sample, or the frames as `decode_frames` says, encoded, and the time of
    their middle in seconds; None where there is none, as of a still picture. ValueError where there is no picture."""
    clip = next((members[name] for name in CLIPS if name in members), None)
    if clip is None:
        names, what = ((*PICTURES, PAIR[0], *CLIPS), "picture") if frames is None else (CLIPS, "clip")
        return [np.frombuffer(_chosen(members, names, what), np.uint8)], None
    found, first = decode_frames(clip, at, frames)
    middle = first if frames is None else first + (frames.count - 1) / frames.fps / 2
    return [_encoded(pixels) for pixels in found], middle


def _encoded(pixels: Pixels) -> Encoded:
    height, width, _ = pixels.shape
    head = np.frombuffer(f"P6\n{width} {height}\n255\n".encode(), np.uint8)
    return np.concatenate([head, pixels.ravel()])


def both(samples: Sequence[Encoded]) -> list[list[Encoded]]:
    """The first pictures of n pairs, encoded, and the last ones. BadImages for the samples that are none."""
    found, faults = [], {}
    for row, sample in enumerate(samples):
        try:
            members = members_of(sample.data)
            found.append([np.frombuffer(_chosen(members, [name], f"picture {name}"), np.uint8) for name in PAIR])
        except ValueError as error:
            faults[row] = str(error)
    if faults:
        raise BadImages(faults)
    return _in_turn(found)


def stills(samples: Sequence[Encoded]) -> list[Encoded]:
    """The pictures in the middle of n samples, as `still`. BadImages for those that have none."""
    return _usable([
        _opened(sample, lambda members: pictures_at(members, 0.5)[0][0]) if is_run(sample.data) else sample
        for sample in samples
    ])  # fmt: skip


def still(sample: Encoded) -> Encoded:
    """The picture in the middle of a sample, encoded: an image is its own, a pair has its first. OSError where there is
    none."""
    if not is_run(sample.data):
        return sample
    with decoding():
        return pictures_at(members_of(sample.data), 0.5)[0][0]


def whole_sound(sample: bytes | memoryview, rate: int) -> Wave:
    """The sound of a sample, or of a file, at ``rate`` Hz. OSError where there is none."""
    with decoding():
        return decode_sound(_chosen(members_of(sample), SOUNDS, "sound") if is_run(sample) else bytes(sample), rate)


@contextmanager
def decoding() -> Iterator[None]:
    """OSError for whatever says within it that a sample does not decode."""
    try:
        yield
    except (need_av().FFmpegError, ValueError, IndexError) as error:
        raise OSError(str(error)) from None


def decode_frames(clip: bytes, at: float, frames: Frames | None = None) -> tuple[list[Pixels], float]:
    """Frames that a clip shows, one or as many as ``frames`` says, and the time of the first in seconds.

    Each is the last one that begins no later than its moment. The first moment is the share ``at`` of the time in which
    all of them lie within the clip; of a clip that is shorter than they need it is the beginning, and its last frame
    stays.
    """
    with need_av().open(io.BytesIO(clip)) as container:
        if not container.streams.video:
            raise ValueError("the clip has no pictures")
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # threads may hang where decoding stops early (PyAV #1849)
        if not stream.duration:
            raise ValueError("the clip does not say how long it is")
        start, tick = stream.start_time or 0, stream.time_base
        apart, count = (Fraction(0), 1) if frames is None else (1 / (Fraction(frames.fps) * tick), frames.count)
        later = np.array([float(number * apart) for number in range(count)])  # exact where the clip's frames are as far
        begin = at * max(0.0, stream.duration - later[-1])  # in ticks from the start, as all of these
        wanted = start + begin + later
        for keyframe in (int(wanted[0]), start):  # one that is decoded before it may be shown after it
            container.seek(keyframe, stream=stream)
            if found := _on_show(container.decode(stream), wanted):
                return found, float(begin * tick)
    raise ValueError("the clip shows nothing at its moment")


def _on_show(decoded: Iterable[Any], wanted: npt.NDArray[np.float64]) -> list[Pixels]:
    """What is on show at the ticks ``wanted``, which rise; none where the first frame comes later than the first."""
    found: list[Pixels] = []
    shown = None

    def show_until(tick: float) -> None:
        ended = int((wanted < tick).sum()) - len(found)
        if ended > 0 and shown is not None:
            found.extend([shown.to_ndarray(format="rgb24")] * ended)

    for frame in decoded:
        if frame.pts is None:
            break
        show_until(frame.pts)
        if len(found) == len(wanted) or (shown is None and frame.pts > wanted[0]):
            return found
        shown = frame
    show_until(math.inf)
    return found


def decode_sound(data: bytes, rate: int) -> Wave:
    """The mean of a sound's channels, at ``rate`` Hz."""
    av = need_av()
    with av.open(io.BytesIO(data)) as container:
        resampler = av.AudioResampler(format="fltp", rate=rate)
        parts = [part.to_ndarray() for frame in container.decode(audio=0) for part in resampler.resample(frame)]
        parts += [part.to_ndarray() for part in (resampler.resample(None) if parts else [])]
    if not parts:
        raise ValueError("the sound is empty")
    wave: Wave = np.concatenate(parts, axis=1).mean(0)
    return wave


def window(wave: Wave, centre: float, sound: Sound) -> Wave:
    """``sound.seconds`` of a wave around the time ``centre`` in seconds, moved so far that they lie within it; what it
    lacks of them is silence behind it."""
    length = round(sound.seconds * sound.rate)
    first = round((centre - sound.seconds / 2) * sound.rate)
    first = max(0, min(first, len(wave) - length))
    part = wave[first : first + length]
    return np.pad(part, (0, length - len(part)))


def _chosen(members: Members, names: Sequence[str], what: str) -> bytes:
    found = next((members[name] for name in names if name in members), None)
    if found is None:
        raise ValueError(f"no {what}: its members are {', '.join(members) or 'none'}")
    return found


def need_av() -> Any:
    """PyAV, which is an extra."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise UserError(f"no PyAV ({error}): pip install 'seer-pipe[media]'") from None
    return av
