"""Samples of several members: of clips and pictures with their sound one picture, and the sound around its moment; of
pairs both pictures.

A picture comes out as the bytes of an image, so what follows is what any image goes through: a JPEG as it is stored, a
frame of a clip as PPM, which is its pixels behind a line of text. PyAV decodes, by one thread for each sample.
"""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from seer_pipe.config import Sound
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


class Media:
    """Opens samples that are runs of members, by ``threads``. UserError where there is no PyAV."""

    def __init__(self, sound: Sound, *, device: str = "cpu", threads: int = 2) -> None:
        _av()
        self.sound, self._device = sound, torch.device(device)
        self._stream = torch.cuda.Stream(self._device) if self._device.type == "cuda" else None
        self._pool = ThreadPoolExecutor(threads, thread_name_prefix="media")

    def __call__(self, samples: Sequence[Encoded], moments: Moments) -> tuple[list[Encoded], Tensor]:
        """The pictures of n samples at their moments, encoded, and the spectrograms [n, *Sound.shape] of the sounds
        around these, on the device. Raises BadImages for samples that lack one of them, or of which one is damaged."""
        found = list(self._pool.map(self._open, samples, moments.at, moments.shift, moments.gain))
        if faults := {i: one for i, one in enumerate(found) if isinstance(one, str)}:
            raise BadImages(faults)
        opened = [one for one in found if not isinstance(one, str)]
        return [picture for picture, _ in opened], self._heard(np.stack([wave for _, wave in opened]))

    def close(self) -> None:
        self._pool.shutdown()

    def _open(self, sample: Encoded, at: float, shift: float, gain: float) -> tuple[Encoded, Wave] | str:
        """Of one sample, or why they cannot be had."""
        try:
            members = members_of(sample.data)
            wave = decode_sound(_chosen(members, SOUNDS, "sound"), self.sound.rate)
            picture, moment = picture_at(members, at)
            if moment is None:
                moment = at * len(wave) / self.sound.rate
            return picture, (gain * window(wave, moment + shift, self.sound)).astype(np.float32)
        except (_av().FFmpegError, IndexError) as error:
            return f"does not decode: {' '.join(str(error).split())}"
        except ValueError as error:
            return str(error)

    def _heard(self, waves: npt.NDArray[np.float32]) -> Tensor:
        if self._stream is None:
            return spectrograms(torch.from_numpy(waves), self.sound)
        with torch.cuda.stream(self._stream):  # so that it waits for nothing else
            heard = spectrograms(torch.from_numpy(waves).to(self._device), self.sound)
            heard.record_stream(torch.cuda.default_stream(self._device))  # where it will be used
            self._stream.synchronize()
        return heard


def picture_at(members: Members, at: float) -> tuple[Encoded, float | None]:
    """The picture at the share ``at`` of a sample, encoded, and its time in seconds; None where it has none, as a still
    picture. ValueError where there is no picture."""
    clip = next((members[name] for name in CLIPS if name in members), None)
    if clip is None:
        return np.frombuffer(_chosen(members, (*PICTURES, PAIR[0], *CLIPS), "picture"), np.uint8), None
    pixels, moment = decode_frame(clip, at)
    height, width, _ = pixels.shape
    head = np.frombuffer(f"P6\n{width} {height}\n255\n".encode(), np.uint8)
    return np.concatenate([head, pixels.ravel()]), moment


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
    return [list(pictures) for pictures in zip(*found, strict=True)]


def still(sample: Encoded) -> Encoded:
    """The picture in the middle of a sample, encoded: an image is its own, a pair has its first. OSError where there is
    none."""
    if not is_run(sample.data):
        return sample
    try:
        return picture_at(members_of(sample.data), 0.5)[0]
    except (_av().FFmpegError, ValueError, IndexError) as error:
        raise OSError(str(error)) from None


def decode_frame(clip: bytes, at: float) -> tuple[npt.NDArray[np.uint8], float]:
    """The frame [h, w, 3] that a clip shows at the share ``at`` of its length, and that time in seconds: the last one
    that begins no later."""
    with _av().open(io.BytesIO(clip)) as container:
        if not container.streams.video:
            raise ValueError("the clip has no pictures")
        stream = container.streams.video[0]
        stream.thread_type = "NONE"  # threads may hang where decoding stops early (PyAV #1849)
        if not stream.duration:
            raise ValueError("the clip does not say how long it is")
        start = stream.start_time or 0
        wanted = start + at * stream.duration
        for keyframe in (int(wanted), start):  # one that is decoded before it may be shown after it
            container.seek(keyframe, stream=stream)
            shown = None
            for frame in container.decode(stream):
                if frame.pts is None or frame.pts > wanted:
                    break
                shown = frame
            if shown is not None:
                return shown.to_ndarray(format="rgb24"), float((wanted - start) * stream.time_base)
    raise ValueError("the clip shows nothing at its moment")


def decode_sound(data: bytes, rate: int) -> Wave:
    """The mean of a sound's channels, at ``rate`` Hz."""
    av = _av()
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


def _av() -> Any:
    """PyAV, which is an extra."""
    try:
        import av
    except ModuleNotFoundError as error:
        raise UserError(f"no PyAV ({error}): pip install 'seer-pipe[media]'") from None
    return av
