"""From bytes to stored clips of a few seconds: H.264 in mp4, sound as FLAC beside it; or a reason why not.

A source is decoded from its first to its last packet, by FFmpeg through PyAV, in one thread. What it displays at every
1 / ``frame_rate`` s is cut into clips: upright, of square pixels, of one frame rate and with a key frame at least every
``video.KEY_FRAME`` frames, so that any frame is reached by decoding few. Durations and rates come from what was
decoded, never from a header.
"""

from __future__ import annotations

import errno
import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from io import BytesIO
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from ingest.formats import breaks_off, sniff_media
from ingest.image import BadImage, Limits
from ingest.reasons import Reason, said
from seer_pipe.errors import UserError
from seer_pipe.shards import members_of, members_sha256

if TYPE_CHECKING:
    from av import AudioStream, VideoStream
    from av.container import InputContainer

Stream = TypeVar("Stream", "VideoStream", "AudioStream")
Media = Literal["video", "audio"]

#: FFmpeg's names of the containers that are read. None of them leads to other files or addresses, as playlists do.
CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2", "matroska,webm", "avi", "flv", "asf", "mpeg", "mpegts", "mpegvideo", "ogg", "rm", "gif",
    "wav", "w64", "aiff", "au", "caf", "flac", "mp3", "aac", "ac3", "amr", "ape", "wv",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True)
class MediaSettings(Limits):
    """What is accepted and how it is cut and stored. UserError where a value makes no sense."""

    media: Media = "video"
    clip_seconds: float = 5.0  # of a clip; the last one of a source may be shorter
    min_seconds: float = 1.0  # a shorter source is rejected, and a shorter rest of one left off
    max_seconds: float = 3600.0  # of a source
    frame_rate: float = 16.0  # frames per second of the stored clips
    audio_rate: int = 24_000  # Hz
    short_side: int | None = 256  # pixels; larger videos are scaled down to it, smaller ones are left
    max_bytes: int = 256 << 20
    decode_timeout: float = 600.0  # seconds that a worker may take for one source

    def __post_init__(self) -> None:
        super().__post_init__()
        demand = self.demand
        demand(self.media in get_args(Media), "media", "image, video or audio")
        demand(1 <= self.frame_rate <= 240, "frame_rate", "from 1 to 240 frames per second")
        demand(8_000 <= self.audio_rate <= 48_000, "audio_rate", "from 8000 to 48000 Hz")
        demand(0.1 <= self.clip_seconds <= 600, "clip_seconds", "from 0.1 to 600 seconds")
        demand(self.clip_frames >= 1, "clip_seconds", f"at least one frame at {self.frame_rate:g} frames per second")
        demand(0 <= self.min_seconds <= self.clip_seconds, "min_seconds", "from 0 to clip_seconds")
        demand(self.max_seconds >= self.clip_seconds, "max_seconds", "at least clip_seconds")
        demand(self.short_side is None or self.short_side >= 16, "short_side", "at least 16 pixels")
        demand(self.decode_timeout > 0, "decode_timeout", "seconds, more than 0")

    @property
    def rate(self) -> Fraction:
        """Frames per second, as a fraction that a container can hold: 29.97 is 30000/1001."""
        broadcast = Fraction(round(self.frame_rate * 1.001) * 1000, 1001)
        exact = abs(broadcast - Fraction(self.frame_rate)) < self.frame_rate / 5000
        return broadcast if exact else Fraction(self.frame_rate).limit_denominator(1000)

    @property
    def clip_frames(self) -> int:
        return round(self.clip_seconds * self.rate)


@dataclass(frozen=True)
class Clip:
    """A clip fit to be stored."""

    video: bytes | None  # mp4 without a sound track
    audio: bytes | None  # FLAC, mono or stereo, 16 bits, exactly as long as the video beside it
    start: float  # s in the source
    duration: float  # s
    frame_rate: float | None = None  # 1/s
    frames: int | None = None
    width: int = 0  # pixels, upright; 0 without video
    height: int = 0
    audio_rate: int | None = None  # Hz
    phash: int | None = None  # 64-bit perceptual hash of the frame in the middle; None for a flat one

    @property
    def members(self) -> dict[str, bytes]:
        """The parts that are stored, by their extension."""
        return {name: data for name, data in (("mp4", self.video), ("flac", self.audio)) if data is not None}

    @property
    def sha256(self) -> str:
        """Of the parts, one after the other, hex."""
        return members_sha256(self.members)

    @property
    def about(self) -> dict[str, Any]:
        """What the sidecar and the JSON member say of it."""
        names = ("start", "duration", "frame_rate", "frames", "width", "height", "audio_rate")
        return {name: getattr(self, name) for name in names}


@dataclass(frozen=True)
class Clips:
    """All clips of one source, in order; at least one."""

    clips: Sequence[Clip]
    format: str  # container and codecs that it came as: mov/h264+aac, matroska/vp9, wav/pcm_s16le, …
    original_width: int = 0  # pixels, as coded, before rotation; 0 without video
    original_height: int = 0

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(len(part) for clip in self.clips for part in clip.members.values())

    @property
    def digest(self) -> bytes:
        """Equal where the same clips were made."""
        return hashlib.sha256("".join(clip.sha256 for clip in self.clips).encode()).digest()


def examine(sample: bytes, settings: MediaSettings) -> Clips:
    """What a stored sample (a run of members) turns out to hold, decoded in full; BadImage where it does not decode."""
    import av

    from ingest import sound, video

    members = members_of(sample)
    seen: dict[str, Any] = {}
    duration = 0.0
    try:
        if "mp4" in members:
            with opened(members["mp4"]) as container:
                rate, frames, (width, height) = video.measure(container)
            duration = float(frames / rate)
            seen = {"frame_rate": float(rate), "frames": frames, "width": width, "height": height}
        if "flac" in members:
            with opened(members["flac"]) as container:
                hertz, samples = sound.measure(container)
            seen["audio_rate"], duration = hertz, duration or samples / hertz
            if round(duration * hertz) != samples:
                raise BadImage(Reason.CORRUPT, f"{samples / hertz:.3f} s of sound beside {duration:.3f} s of video")
    except av.error.FFmpegError as error:
        raise BadImage(Reason.CORRUPT, said(error)) from None
    return Clips([Clip(members.get("mp4"), members.get("flac"), 0.0, duration, **seen)], "")


def demand_av() -> None:
    """UserError where PyAV is not installed."""
    try:
        import av  # noqa: F401
    except ImportError:
        raise UserError("video and audio need PyAV: pip install 'seer-pipe[media]'") from None


def process(data: bytes, settings: MediaSettings) -> Clips:
    """Decode ``data`` in full and cut it into clips fit to be stored, or raise BadImage."""
    import av

    settings.check_bytes(data)
    try:
        return _cut(data, settings)
    except MemoryError:
        raise BadImage(Reason.DECODER_MEMORY) from None
    except av.error.FFmpegError as error:
        if isinstance(error, OSError) and error.errno == errno.ENOMEM:
            raise BadImage(Reason.DECODER_MEMORY) from None
        raise _damaged(data, error) from None


def _cut(data: bytes, settings: MediaSettings) -> Clips:
    from ingest import sound, video  # which need PyAV

    with opened(data) as container:
        container_name = container.format.name.split(",")[0]
        seen = video.stream_of(container) if settings.media == "video" else None
        heard = sound.stream_of(container)
        if settings.media == "video" and seen is None:
            raise BadImage(Reason.NO_VIDEO, container_name)
        if settings.media == "audio" and heard is None:
            raise BadImage(Reason.NO_SOUND, container_name)
        codecs = "+".join(stream.codec_context.name for stream in (seen, heard) if stream is not None)
        form = f"{container_name}/{codecs}"
        coded = (0, 0) if seen is None else (seen.codec_context.width, seen.codec_context.height)
        if seen is not None:
            settings.check_size(*coded)
    if breaks_off(data, sniff_media(data)):
        raise BadImage(Reason.TRUNCATED, form)
    with opened(data) as container:
        if seen is None:
            return Clips(sound.clips(container, settings), form)
        begin, clips = video.clips(container, settings)
    if heard is not None:
        with opened(data) as container:
            clips = sound.beside(container, settings, begin, clips)
    return Clips(clips, form, *coded)


@contextmanager
def opened(data: bytes) -> Iterator[InputContainer]:
    """The container in ``data``. BadImage where it is none that is read here."""
    import av

    options = {"format_whitelist": ",".join(CONTAINERS), "protocol_whitelist": "none"}
    try:
        container = av.open(BytesIO(data), "r", options=options, metadata_errors="replace")
    except (av.error.InvalidDataError, av.error.ArgumentError) as error:
        if not sniff_media(data):
            raise BadImage(Reason.NOT_MEDIA, f"begins with {data[:24]!r}") from None
        raise _damaged(data, error) from None
    with container:
        yield container


def one_thread(stream: Stream) -> Stream:
    """``stream``, to be decoded in the calling thread, by a decoder that takes no damage for a picture or a sound."""
    if getattr(stream, "codec_context", None) is None:
        raise BadImage(Reason.UNSUPPORTED_FORMAT, f"no decoder for its {stream.type}")
    stream.codec_context.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"err_detect": "crccheck+bitstream+buffer+explode"}
    return stream


def _damaged(data: bytes, error: Exception) -> BadImage:
    reason = Reason.TRUNCATED if breaks_off(data, sniff_media(data)) else Reason.CORRUPT
    return BadImage(reason, f"{sniff_media(data).lower()}: {getattr(error, 'strerror', None) or said(error)}")
