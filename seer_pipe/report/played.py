"""What a page plays of a sample: a clip with its sound in one file, as browsers take it, or the sound alone."""

from __future__ import annotations

import io
from collections.abc import Collection
from contextlib import suppress
from pathlib import Path

from seer_pipe.data.media import CLIPS, SOUNDS, Members, decoding, need_av
from seer_pipe.shards import is_run, members_of


class Player:
    """Puts what some samples play, by their numbers, into files NUMBER.mp4, or of another extension, of ``folder``.

    ``kinds``: the extension of each that plays. Several threads may give it samples.
    """

    def __init__(self, folder: Path, wanted: Collection[int]) -> None:
        self.kinds: dict[int, str] = {}
        self._folder, self._wanted = folder, frozenset(wanted)

    def __call__(self, number: int, sample: bytes) -> None:
        """What does not decode is not played: its picture says so already."""
        if number not in self._wanted or not is_run(sample):
            return
        found = None
        with suppress(OSError), decoding():
            found = playable(members_of(sample))
        if found is not None:
            kind, data = found
            self._folder.mkdir(exist_ok=True)
            (self._folder / f"{number}.{kind}").write_bytes(data)
            self.kinds[number] = kind


def playable(members: Members) -> tuple[str, bytes] | None:
    """The extension and the bytes of what a sample plays; None where it is still and mute."""
    clip = next(((name, members[name]) for name in CLIPS if name in members), None)
    sound = next(((name, members[name]) for name in SOUNDS if name in members), None)
    if clip is None or sound is None:
        return clip or sound
    return "mp4", together(clip[1], sound[1])


def together(clip: bytes, sound: bytes) -> bytes:
    """An MP4 of the pictures as they are and the sound as AAC."""
    av, out = need_av(), io.BytesIO()
    with (
        av.open(io.BytesIO(clip)) as pictures,
        av.open(io.BytesIO(sound)) as waves,
        av.open(out, "w", format="mp4") as both,
    ):
        shown = both.add_stream_from_template(pictures.streams.video[0])
        heard = both.add_stream("aac", rate=waves.streams.audio[0].rate)
        for packet in pictures.demux(video=0):
            if packet.dts is not None:  # the last one is empty
                packet.stream = shown
                both.mux(packet)
        for frame in waves.decode(audio=0):
            both.mux(heard.encode(frame))
        both.mux(heard.encode(None))
    return out.getvalue()
