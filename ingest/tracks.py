"""From stored clips to tracks: pairs of pictures of one patch that moves, in its first frame and some frames later.

A sample of pairs is a run of ``0.jpg``, ``1.jpg`` and ``json``; both pictures have one size.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
import simplejpeg

from ingest import image
from ingest.image import BadImage, ImageSettings, Stored
from ingest.media import MediaSettings, opened
from ingest.reasons import Reason, said
from seer_pipe.errors import UserError
from seer_pipe.shards import PAIR, members_of, members_sha256

if TYPE_CHECKING:
    from av import VideoFrame

    from ingest.motion import Patch

SHORT_SIDE = 256  # pixels that motion is looked for in; larger frames are looked at so small, and cut as they are
QUALITY = 95  # of the JPEGs

Box = tuple[int, int, int]  # left, top, side in pixels of the clip's frames


@dataclass(frozen=True, kw_only=True)
class TrackSettings:
    """How patches are followed. UserError where a value makes no sense."""

    media: Literal["pair"] = field(default="pair", init=False)  # what the samples are
    frames: int = 30  # from the first picture of a track to its last
    patch: float = 0.5  # side of a patch as a share of the frame's short side
    max_pixels: ClassVar[int] = MediaSettings.max_pixels  # of a frame

    def __post_init__(self) -> None:
        if self.frames < 1:
            raise UserError(f"frames = {self.frames}: at least 1")
        if not 0.1 <= self.patch <= 1:
            raise UserError(f"patch = {self.patch}: a share of the frame's short side, from 0.1 to 1")


@dataclass(frozen=True)
class Track:
    """A patch in two frames of a clip."""

    first: bytes  # JPEGs of one size
    last: bytes
    frame: int  # number of the first in the clip
    frames: int  # from there to the last
    boxes: tuple[Box, Box]

    @property
    def side(self) -> int:
        """Pixels of each side of the pictures."""
        return self.boxes[0][2]

    @property
    def members(self) -> dict[str, bytes]:
        return dict(zip(PAIR, (self.first, self.last), strict=True))

    @property
    def sha256(self) -> str:
        """Of the pictures, one after the other, hex."""
        return members_sha256(self.members)

    @property
    def distance(self) -> float:
        """Pixels of the clip's frames from the one box to the other."""
        (left, top, _), (now_left, now_top, _) = self.boxes
        return float(np.hypot(now_left - left, now_top - top))

    @property
    def places(self) -> list[dict[str, int]]:
        """Its boxes as the JSON member has them."""
        return [{"left": left, "top": top, "width": side, "height": side} for left, top, side in self.boxes]

    @property
    def about(self) -> dict[str, Any]:
        """What the sidecar and the JSON member say of it."""
        return {"frame": self.frame, "frames": self.frames, "distance": round(self.distance, 3)}


@dataclass(frozen=True)
class Tracks:
    """All tracks of a clip, in order; at least one."""

    tracks: Sequence[Track]

    @property
    def size(self) -> int:
        """Bytes."""
        return sum(len(track.first) + len(track.last) for track in self.tracks)

    @property
    def digest(self) -> bytes:
        """Equal where the same tracks were made."""
        return hashlib.sha256("".join(track.sha256 for track in self.tracks).encode()).digest()


def demand_cv2() -> None:
    """UserError where OpenCV or PyAV is not installed."""
    try:
        import av  # noqa: F401
        import cv2  # noqa: F401
    except ImportError as error:
        raise UserError(f"tracks need OpenCV and PyAV ({error}): pip install 'seer-pipe[tracks]'") from None


def process(sample: bytes, settings: TrackSettings) -> Tracks:
    """The tracks in a stored clip, a run of members; BadImage where there are none."""
    import av

    try:
        clip = members_of(sample).get("mp4")
        if clip is None:
            raise BadImage(Reason.NO_VIDEO)
        finder = _Finder(settings)
        found = [track for frame in _frames(clip) for track in finder.show(frame)]
    except (ValueError, av.error.FFmpegError) as error:
        raise BadImage(Reason.CORRUPT, said(error)) from None
    if found:
        return Tracks(found)
    if finder.shown <= settings.frames:
        raise BadImage(Reason.TOO_SHORT, f"{finder.shown} frames; a track has {settings.frames + 1}")
    raise BadImage(Reason.TOO_MUCH_MOTION if finder.too_much else Reason.NO_MOTION)


def examine(sample: bytes, settings: ImageSettings) -> Stored:
    """The first picture of a stored pair, when both were decoded in full; BadImage where they are no pair."""
    members = members_of(sample)
    if missing := set(PAIR) - members.keys():
        raise BadImage(Reason.CORRUPT, f"no {' and no '.join(sorted(missing))} among its members")
    first, last = (image.process(members[name], settings) for name in PAIR)
    if (first.width, first.height) != (last.width, last.height):
        raise BadImage(Reason.CORRUPT, "its two pictures have two sizes")
    return first


def _frames(clip: bytes) -> Iterator[VideoFrame]:
    from ingest import video  # which needs PyAV

    with opened(clip) as container:
        stream = video.stream_of(container)
        if stream is None:
            raise BadImage(Reason.NO_VIDEO)
        yield from container.decode(stream)


@dataclass(frozen=True)
class _Begun:
    """A track on its way."""

    patch: Patch
    picture: bytes
    box: Box


class _Finder:
    """Takes the frames of a clip in order, and gives tracks. It holds two frames, however long the clip is."""

    def __init__(self, settings: TrackSettings) -> None:
        self._settings = settings
        self._before: tuple[VideoFrame, npt.NDArray[Any]] | None = None
        self._begun: list[_Begun] = []
        self.shown = 0  # frames
        self.too_much = False  # whether of some frame too much moved

    def show(self, frame: VideoFrame) -> list[Track]:
        """The tracks that end with this frame: each has its first picture ``frames`` before."""
        from ingest import motion

        if self._before is None:
            self._scale = min(1.0, SHORT_SIDE / min(frame.width, frame.height))
            self._side = max(2, round(self._settings.patch * self._scale * min(frame.width, frame.height)))
        width, height = round(frame.width * self._scale), round(frame.height * self._scale)
        grey = np.ascontiguousarray(frame.reformat(width, height, "gray", threads=1).to_ndarray())  # rows may be padded
        number, ended = self.shown, []
        if self._before is not None:
            before, grey_before = self._before
            if (number - 1) % self._settings.frames == 0:
                self._begun = self._begin(before, grey_before, grey)
            self._begun = [
                replace(one, patch=now)
                for one in self._begun
                if (now := motion.follow(one.patch, grey_before, grey)) is not None
            ]
            if number % self._settings.frames == 0:
                ended = [self._ended(one, frame) for one in self._begun]
        self._before = frame, grey
        self.shown += 1
        return ended

    def _begin(self, frame: VideoFrame, grey: npt.NDArray[Any], after: npt.NDArray[Any]) -> list[_Begun]:
        from ingest import motion

        patches = motion.find(grey, after, self._side)
        if patches is None:
            self.too_much = True
            return []
        return [_Begun(patch, *self._cut(frame, patch)) for patch in patches]

    def _ended(self, begun: _Begun, frame: VideoFrame) -> Track:
        picture, box = self._cut(frame, begun.patch)
        frames = self._settings.frames
        return Track(begun.picture, picture, self.shown - frames, frames, (begun.box, box))

    def _cut(self, frame: VideoFrame, patch: Patch) -> tuple[bytes, Box]:
        """The patch as a JPEG, and where it is."""
        side = min(round(self._side / self._scale), frame.width, frame.height)
        corner = np.round(patch.centre / self._scale - side / 2).astype(int)
        left, top = np.clip(corner, 0, [frame.width - side, frame.height - side]).tolist()
        pixels = frame.reformat(format="rgb24", threads=1).to_ndarray()[top : top + side, left : left + side]
        jpeg: bytes = simplejpeg.encode_jpeg(np.ascontiguousarray(pixels), QUALITY, "RGB", "420")
        return jpeg, (left, top, side)
