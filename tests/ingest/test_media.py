"""From the bytes of a video or a sound to clips, or to the reason why not."""

from __future__ import annotations

import struct
from fractions import Fraction
from io import BytesIO
from itertools import pairwise
from pathlib import Path

import av
import numpy as np
import pytest
from PIL import Image

from ingest.image import BadImage
from ingest.media import MediaSettings, process
from ingest.reasons import Reason
from seer_pipe.errors import UserError
from tests.ingest.films import (
    BLUE,
    CODECS,
    GREEN,
    RED,
    WHITE,
    corners,
    film,
    frames_of,
    number_of,
    numbered,
    samples_of,
    tone,
)  # fmt: skip

SHORT = MediaSettings(clip_seconds=1.0, min_seconds=0.5)
SECOND = [k / 25 for k in range(25)]  # of 25 frames


def reason(data: bytes, settings: MediaSettings = SHORT) -> Reason:
    with pytest.raises(BadImage) as caught:
        process(data, settings)
    return caught.value.reason


def test_a_clip_is_h264_of_one_rate_with_a_key_frame_every_sixteen_frames() -> None:
    times = [k / 25 for k in range(63)]  # 2.52 s
    found = process(film(times, draw=corners, sound=tone(2.52, 48_000, channels=2)), SHORT)
    assert (found.format, found.original_width, found.original_height) == ("mov/h264+aac", 96, 64)
    assert [(clip.start, clip.duration, clip.frames) for clip in found.clips] == [
        (0, 1, 16),
        (1, 1, 16),
        (2, 0.5625, 9),
    ]
    for clip in found.clips:
        with av.open(BytesIO(clip.video)) as container:
            (stream,) = container.streams  # and no sound
            assert (container.format.name[:3], stream.codec_context.name) == ("mov", "h264")
            assert (stream.average_rate, stream.frames) == (16, clip.frames)
            frames = list(container.decode(stream))
        assert [frame.time for frame in frames] == [k / 16 for k in range(clip.frames)]
        keys = [k for k, frame in enumerate(frames) if frame.key_frame] + [len(frames)]
        assert keys[0] == 0
        assert max(b - a for a, b in pairwise(keys)) <= 16
        assert len(samples_of(clip.audio)) == clip.duration * 24_000
        assert samples_of(clip.audio).shape[1] == 2


def test_the_frame_is_the_one_that_is_displayed() -> None:
    at = [0.0, 0.05, 0.3, 0.31, 0.32, 0.9, 1.2]
    for format in ("mp4", "matroska"):
        found = process(film(at, format=format), SHORT)
        shown = [number_of(frame) for clip in found.clips for frame in frames_of(clip.video)]
        # to 1.24 s; 0.3125 is within a rounded timestamp of 0.31, not of 0.32
        assert shown == [max(n for n, time in enumerate(at) if time <= k / 16 + 0.002) for k in range(len(shown))]
        assert len(shown) == 16  # the rest is too short


def test_of_the_same_rate_each_frame_is_there_once() -> None:
    for format in ("mp4", "matroska", "avi", "mpegts"):  # which all round timestamps in another way
        found = process(film(SECOND, format=format), MediaSettings(clip_seconds=1, frame_rate=25))
        assert [number_of(frame) for frame in frames_of(found.clips[0].video)] == list(range(25)), format


@pytest.mark.parametrize("format", CODECS)
def test_containers(format: str) -> None:
    found = process(film(SECOND, draw=corners, format=format, sound=tone(1, 48_000)), SHORT)
    assert found.clips[0].duration == 1
    for corner, colour in zip(seen_corners(found.clips[0].video), (RED, GREEN, BLUE, WHITE), strict=True):
        assert np.abs(corner - colour).max() < 20
    samples = samples_of(found.clips[0].audio)
    assert samples.shape == (24_000, 1)
    assert peak_hertz(samples) == 440


def seen_corners(video: bytes) -> list[np.ndarray]:
    pixels = frames_of(video)[0].to_ndarray(format="rgb24").astype(int)
    down, across = pixels.shape[0] // 4, pixels.shape[1] // 4
    return [pixels[y, x] for y in (down, 3 * down) for x in (across, 3 * across)]


def peak_hertz(samples: np.ndarray, rate: int = 24_000) -> int:
    power = np.abs(np.fft.rfft(samples[:, 0].astype(float)))
    return round(int(power.argmax()) * rate / len(samples))


def test_colours_come_through_from_another_matrix_and_range() -> None:
    def change(stream: av.VideoStream) -> None:
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 2  # BT.709, of full range

    data = film(SECOND, draw=corners, change=change)
    before = seen_corners(data)
    after = seen_corners(process(data, SHORT).clips[0].video)
    for one, other in zip(before, after, strict=True):
        assert np.abs(one - other).max() < 12


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("degrees", [0, 90, 180, 270])
def test_a_rotation_by_metadata_is_applied_to_the_pixels(degrees: int, flip: bool) -> None:
    data = film(SECOND, draw=corners, change=lambda stream: stream.set_display_rotation(degrees, hflip=flip))
    grid = np.array([[0, 1], [2, 3]])
    grid = np.rot90(grid, degrees // 90)
    grid = grid[:, ::-1] if flip else grid
    (clip,) = process(data, SHORT).clips
    assert (clip.width, clip.height) == ((64, 96) if degrees % 180 else (96, 64))
    for corner, place in zip(seen_corners(clip.video), grid.flatten().tolist(), strict=True):
        assert np.abs(corner - (RED, GREEN, BLUE, WHITE)[place]).max() < 20


def test_sizes() -> None:
    def stored(size: tuple[int, int], short_side: int | None = 48, change: object = None) -> tuple[int, int]:
        clip = process(
            film(SECOND, size=size, change=change), MediaSettings(clip_seconds=1, short_side=short_side)
        ).clips[0]
        frame = frames_of(clip.video)[0]
        assert (frame.width, frame.height) == (clip.width, clip.height)
        return clip.width, clip.height

    assert stored((96, 64)) == (72, 48)
    assert stored((64, 98)) == (48, 74)
    assert stored((96, 64), None) == (96, 64)
    assert stored((34, 42)) == (34, 42)  # never scaled up

    def wide(stream: av.VideoStream) -> None:
        stream.codec_context.sample_aspect_ratio = 2

    assert stored((64, 64), 48, wide) == (96, 48)  # of square pixels


def test_odd_sizes_become_even() -> None:
    def change(stream: av.VideoStream) -> None:
        stream.pix_fmt = "yuv444p"

    data = film(SECOND, size=(97, 65), change=change, codecs=("libx264", "aac"))
    assert frames_of(data)[0].width == 97
    (clip,) = process(data, SHORT).clips
    assert (clip.width, clip.height) == (96, 64)


def test_sound_lies_where_it_is_heard() -> None:
    """From 1.5 to 2.5 s of 4; clips are of 1 s."""
    times = [k / 25 for k in range(100)]
    for format in ("mp4", "matroska", "mpegts"):
        found = process(film(times, draw=corners, format=format, sound=tone(1, 48_000), sound_at=1.5), SHORT)
        assert [sorted(clip.members) for clip in found.clips] == [["mp4"], ["flac", "mp4"], ["flac", "mp4"], ["mp4"]]
        assert [clip.audio_rate for clip in found.clips] == [None, 24_000, 24_000, None]
        loud = np.abs(np.concatenate([samples_of(clip.audio) for clip in found.clips[1:3]])[:, 0].astype(int)) > 2000
        first, last = np.flatnonzero(loud)[[0, -1]]
        assert len(loud) == 48_000
        assert abs(first - 12_000) < 600, format  # 25 ms: AAC's own blocks
        assert abs(last - 36_000) < 1200, format


def test_sound_that_begins_before_the_picture_is_cut() -> None:
    wave = np.concatenate([tone(1, 48_000, hertz=1000), tone(1, 48_000, hertz=2000)])
    data = film([1 + k / 25 for k in range(25)], draw=corners, format="matroska", sound=wave)
    (clip,) = process(data, SHORT).clips
    assert peak_hertz(samples_of(clip.audio)) == 2000


@pytest.mark.parametrize(
    ("format", "codec"),
    [("wav", "pcm_s16le"), ("flac", "flac"), ("mp3", "libmp3lame"), ("ogg", "libopus"), ("mp4", "aac")],
)
def test_sound_alone(format: str, codec: str) -> None:
    data = film(sound=tone(2.75, 48_000, channels=2), format=format, codecs=("", codec))
    found = process(data, MediaSettings(media="audio", clip_seconds=1, min_seconds=0.5))
    assert [clip.start for clip in found.clips] == [0, 1, 2]
    for clip in found.clips:
        assert clip.video is None
        assert (clip.frame_rate, clip.frames, clip.width, clip.height, clip.phash) == (None, None, 0, 0, None)
        assert samples_of(clip.audio).shape == (round(clip.duration * 24_000), 2)
        assert peak_hertz(samples_of(clip.audio)[:12_000]) == 440
    assert found.clips[2].duration == pytest.approx(0.75, abs=0.06)
    assert reason(data) == Reason.NO_VIDEO


def test_the_sound_of_a_video_and_its_rate() -> None:
    data = film(SECOND, draw=corners, sound=tone(1, 48_000))
    settings = MediaSettings(media="audio", clip_seconds=1, audio_rate=16_000)
    found = process(data, settings)
    assert found.format == "mov/aac"
    assert found.clips[0].audio_rate == 16_000
    assert peak_hertz(samples_of(found.clips[0].audio), 16_000) == 440
    assert reason(film(SECOND), settings) == Reason.NO_SOUND


def test_the_same_bytes_give_the_same_clips() -> None:
    data = film(SECOND, draw=corners, sound=tone(1, 48_000))
    assert process(data, SHORT) == process(data, SHORT)
    assert process(data, SHORT).digest != process(film(SECOND, sound=tone(1, 48_000)), SHORT).digest


def test_what_a_header_says_of_the_duration_counts_for_nothing() -> None:
    data = film(SECOND, draw=corners, format="matroska")
    place = data.index(b"\x44\x89\x88") + 3  # Duration, in milliseconds
    data = data[:place] + struct.pack(">d", 36_000_000.0) + data[place + 8 :]
    with av.open(BytesIO(data)) as container:
        assert container.duration == 36_000_000_000  # µs: ten hours
    assert [clip.duration for clip in process(data, SHORT).clips] == [1.0]


def test_a_frame_that_is_displayed_for_hours() -> None:
    assert reason(film([0.0, 0.04, 36_000.0], draw=corners)) == Reason.TOO_MANY_SECONDS
    assert reason(film(sound=tone(1.2, 8000), sound_rate=8000, format="wav", codecs=("", "pcm_s16le")),
                  MediaSettings(media="audio", clip_seconds=1, max_seconds=1)) == Reason.TOO_MANY_SECONDS  # fmt: skip


def test_one_frame() -> None:
    data = film([0.0], draw=corners)
    assert reason(data) == Reason.TOO_SHORT
    (clip,) = process(data, MediaSettings(min_seconds=0)).clips
    assert clip.frames == 1


def test_cover_art_is_no_video() -> None:
    def cover(stream: av.VideoStream) -> None:
        stream.disposition, stream.pix_fmt = av.stream.Disposition.attached_pic, "rgb24"

    data = film([0.0], draw=corners, sound=tone(1, 48_000), codecs=("png", "aac"), change=cover)
    assert reason(data) == Reason.NO_VIDEO
    assert process(data, MediaSettings(media="audio", clip_seconds=1)).clips[0].duration == 1


def test_of_several_streams_the_one_that_a_player_shows() -> None:
    file = BytesIO()
    with av.open(file, "w", format="matroska") as container:
        streams = []
        for size in ((32, 32), (96, 64)):
            stream = container.add_stream("libx264", rate=25)
            stream.width, stream.height, stream.pix_fmt = *size, "yuv420p"
            streams.append(stream)
        streams[0].disposition, streams[1].disposition = av.stream.Disposition(0), av.stream.Disposition.default
        for number in range(25):
            for stream in streams:
                frame = av.VideoFrame.from_ndarray(numbered(number, stream.width, stream.height), "rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 25)
                container.mux(stream.encode(frame))
        for stream in streams:
            container.mux(stream.encode(None))
    (clip,) = process(file.getvalue(), SHORT).clips
    assert (clip.width, clip.height) == (96, 64)


@pytest.mark.parametrize("format", ["mp4", "matroska", "webm", "avi"])
def test_truncated(format: str) -> None:
    data = film(SECOND, draw=corners, format=format, sound=tone(1, 48_000))
    for kept in (0.3, 0.6, 0.95):
        assert reason(data[: int(len(data) * kept)]) == Reason.TRUNCATED


def test_damage_inside() -> None:
    data = film(SECOND, draw=corners)
    place = data.index(b"mdat") + 900
    assert reason(data[:place] + bytes(100) + data[place + 100 :]) == Reason.CORRUPT


def test_what_is_no_media(tmp_path: Path) -> None:
    """Lists that lead elsewhere are not followed, and pictures are no videos."""
    (tmp_path / "secret.mp4").write_bytes(film(SECOND))
    picture = BytesIO()
    Image.new("RGB", (64, 64)).save(picture, "JPEG")
    for data in (
        b"<!DOCTYPE html><html><body>404</body></html>" * 30,
        f"#EXTM3U\n#EXT-X-TARGETDURATION:5\n#EXTINF:5,\nfile://{tmp_path}/secret.mp4\n#EXT-X-ENDLIST\n".encode(),
        f"ffconcat version 1.0\nfile {tmp_path}/secret.mp4\n".encode(),
        picture.getvalue(),
        np.random.default_rng(0).bytes(4000),
    ):
        assert reason(data) == Reason.NOT_MEDIA


def test_limits() -> None:
    data = film(SECOND, draw=corners)
    assert reason(b"") == Reason.EMPTY
    assert reason(data, MediaSettings(min_bytes=10**7)) == Reason.TOO_FEW_BYTES
    assert reason(data, MediaSettings(max_bytes=100)) == Reason.TOO_LARGE
    assert reason(data, MediaSettings(max_pixels=96 * 64 - 1)) == Reason.TOO_MANY_PIXELS
    assert reason(data, MediaSettings(min_side=65)) == Reason.TOO_SMALL
    assert reason(data, MediaSettings(max_aspect=1.2)) == Reason.BAD_ASPECT


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("media", "films"), ("clip_seconds", 0), ("min_seconds", 6), ("max_seconds", 1), ("frame_rate", 0.5),
        ("audio_rate", 4000), ("short_side", 4), ("min_side", 0), ("max_aspect", 0.5), ("max_bytes", 0),
        ("max_pixels", 1), ("decode_timeout", 0), ("min_bytes", -1),
    ],
)  # fmt: skip
def test_a_setting_that_makes_no_sense_is_named(name: str, value: object) -> None:
    with pytest.raises(UserError, match=name):
        MediaSettings(**{name: value})


def test_a_rate_that_is_a_fraction() -> None:
    assert [MediaSettings(frame_rate=rate).rate for rate in (16, 12.5, 23.976, 29.97)] == [
        16, Fraction(25, 2), Fraction(24_000, 1001), Fraction(30_000, 1001),
    ]  # fmt: skip
    (clip,) = process(film(SECOND), MediaSettings(clip_seconds=1, frame_rate=29.97)).clips
    assert (clip.frames, clip.duration) == (30, pytest.approx(1.001))
