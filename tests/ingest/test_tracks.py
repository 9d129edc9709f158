"""Patches that move in clips: where they are, what is no track, and the set of pairs that they make."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import webdataset
from PIL import Image

from ingest.image import BadImage
from ingest.motion import find, follow
from ingest.tracks import Track, TrackSettings, process
from seer_pipe.cli import main
from seer_pipe.shards import ShardSet, members_of
from seer_pipe.shards.members import member
from tests.ingest.helpers import COMMAND, files, rejected, seer_ingest, stored, until
from tests.ingest.shapes import HEIGHT, WIDTH, Place, clip, texture, write_clips
from tests.media import mp4

SHORT = TrackSettings(frames=10)
NEAR = 6  # pixels from a disc's middle, of a radius of 20


def line(number: int) -> tuple[float, float]:
    return 40 + 4 * number, 64


def falling(number: int) -> tuple[float, float]:
    return 140 - number, 34 + 3 * number


def tracks_in(data: bytes, settings: TrackSettings = SHORT) -> Sequence[Track]:
    return process(member("k.mp4", data) + member("k.json", b"{}"), settings).tracks


def reason(data: bytes, settings: TrackSettings = SHORT) -> str:
    with pytest.raises(BadImage) as caught:
        tracks_in(data, settings)
    return str(caught.value.reason)


def off(track: Track, place: Place) -> float:
    """How far the farther of the two boxes' middles is from the disc's, in pixels."""
    numbers = track.frame, track.frame + track.frames
    middles = [np.array([left, top]) + side / 2 for left, top, side in track.boxes]
    return max(float(np.abs(middle - place(number)).max()) for middle, number in zip(middles, numbers, strict=True))


@pytest.mark.parametrize("seed", range(4))
def test_a_patch_stays_on_what_moves(seed: int) -> None:
    """Both pictures hold the disc in their middle, whatever the ground does."""
    for pan in (lambda n: (0, 0), lambda n: (1.4 * n, 0.7 * n)):
        found = tracks_in(clip([line], pan, seed=seed))
        assert [track.frame for track in found] == [0, 10]
        assert all(off(track, line) < NEAR for track in found)
        assert all(track.distance == pytest.approx(40, abs=NEAR) for track in found)
        sizes = {Image.open(io.BytesIO(picture)).size for track in found for picture in track.members.values()}
        assert sizes == {(HEIGHT // 2, HEIGHT // 2)}


def test_each_of_several_has_its_own() -> None:
    found = tracks_in(clip([line, falling], frames=16), TrackSettings(frames=5, patch=0.4))
    of = [min((line, falling), key=lambda place: off(track, place)) for track in found]
    assert all(off(track, place) < NEAR for track, place in zip(found, of, strict=True))
    for start in (0, 5, 10):
        assert {place for track, place in zip(found, of, strict=True) if track.frame == start} == {line, falling}


def test_large_frames_are_cut_as_they_are() -> None:
    """Motion is looked for in a smaller one, and the patch comes out of the frame itself."""
    large = [np.asarray(Image.fromarray(frame).resize((4 * WIDTH, 4 * HEIGHT))) for frame in _frames(clip([line]))]
    found = tracks_in(mp4(large))
    assert {track.side for track in found} == {4 * HEIGHT // 2}
    assert all(off(track, lambda n: (4 * line(n)[0], 4 * line(n)[1])) < 4 * NEAR for track in found)


def _frames(data: bytes) -> list[np.ndarray]:
    import av

    with av.open(io.BytesIO(data)) as container:
        return [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]


@pytest.mark.parametrize("seed", range(3))
def test_what_does_not_move_is_no_track(seed: int) -> None:
    assert reason(clip(seed=seed)) == "no_motion"
    assert reason(clip([lambda n: (60, 60)], seed=seed)) == "no_motion"
    for across, down in ((1.4, 0.7), (-3, 0), (0, -1.5)):
        pan = lambda n, by=(across, down): (by[0] * (n % 10), by[1] * (n % 10))  # noqa: E731
        assert reason(clip(pan=pan, seed=seed)) == "no_motion"
    flat = np.full((HEIGHT, WIDTH, 3), 90, np.uint8)
    assert reason(mp4([flat] * 21)) == "no_motion"


def test_other_clips_without_a_track_have_their_reasons() -> None:
    assert reason(mp4([texture(HEIGHT, WIDTH, seed) for seed in range(21)])) == "too_much_motion"
    assert reason(clip([line], frames=10)) == "too_short"
    assert len(tracks_in(clip([line], frames=11))) == 1
    assert reason(mp4([texture(16, 16, 0)] * 21)) == "no_motion"  # smaller than any flow is made for
    assert reason(clip([line])[:-2000]) in ("truncated", "corrupt")
    with pytest.raises(BadImage, match="no_video"):
        process(member("k.flac", b"fLaC"), SHORT)


def test_what_is_hidden_is_lost() -> None:
    """The points do not hang on to what covers them."""
    frames = [np.asarray(Image.fromarray(frame).convert("L")) for frame in _frames(clip([line]))]
    (patch,) = find(frames[0], frames[1], HEIGHT // 2) or []
    assert follow(patch, frames[0], frames[1]) is not None
    covered = frames[1].copy()
    covered[32:96] = texture(64, WIDTH, 9)[..., 0]
    assert follow(patch, frames[0], covered) is None


CLIPS = [clip([line]), clip(), clip([falling], seed=2), clip([line], frames=8), clip([line], seed=4)]
TRACKS = ("--frames", 10, "--unit", 2, "--workers", 2)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_clips(tmp_path_factory.mktemp("sets") / "clips", CLIPS, shards=2)


@pytest.fixture(scope="module")
def pairs(clips: Path) -> Path:
    out = clips.parent / "pairs"
    run = seer_ingest("tracks", clips, *TRACKS, "--out", out)
    assert run.returncode == 0, run.stderr
    assert "5 inputs: 3 stored, 2 rejected" in run.stdout
    assert "6 pairs of pictures in 3 shards" in run.stdout
    assert f"next: seer-pipe train tracking_resnet18 data.path={out}" in run.stderr
    return out


def test_each_clip_becomes_pairs_or_is_rejected(pairs: Path) -> None:
    assert rejected(pairs) == {"kind/1.mp4#000001": "no_motion", "kind/3.mp4#000003": "too_short"}
    shards, rows = ShardSet.open(pairs), stored(pairs)
    assert shards.media == "pair"
    assert [(row["source"], row["clip_key"], row["track"], row["frame"], row["frames"]) for row in rows] == [
        (f"kind/{n}.mp4#{n:06d}", f"{n:06d}", track, 10 * track, 10) for n in (0, 2, 4) for track in (0, 1)
    ]
    members = members_of(shards.read(0, rows[0]))
    expected = tracks_in(CLIPS[0])[0]
    assert (members["0.jpg"], members["1.jpg"]) == (expected.first, expected.last)
    said = json.loads(members["json"])
    boxes = [dict(zip(("left", "top", "width", "height"), (*box, box[2]), strict=True)) for box in expected.boxes]
    assert said["boxes"] == boxes
    assert {name: said[name] for name in ("source", "clip_key", "frame", "frames", "distance")} == {
        "source": "kind/0.mp4#000000", "clip_key": "000000", "frame": 0, "frames": 10,
        "distance": pytest.approx(expected.distance, abs=1e-3),
    }  # fmt: skip
    (sample, *_) = webdataset.WebDataset(str(pairs / "00000.tar"), shardshuffle=False)
    assert {"0.jpg", "1.jpg", "json"} <= sample.keys()


def test_the_tools_understand_them(pairs: Path, tmp_path: Path) -> None:
    told = seer_ingest("stats", pairs).stdout
    assert "6 pairs of pictures in 3 shards" in told
    assert "of 3 clips" in told
    checked = seer_ingest("verify", pairs, "--images")
    assert checked.returncode == 0, checked.stdout
    assert seer_ingest("show", pairs, tmp_path / "sheet.png").returncode == 0
    shutil.copytree(pairs, tmp_path, dirs_exist_ok=True)
    row, tar = stored(pairs)[0], bytearray((pairs / "00000.tar").read_bytes())
    tar[row["offset"] + 1000] ^= 1
    (tmp_path / "00000.tar").write_bytes(tar)
    assert f"{row['key']} its bytes do not have the checksums" in seer_ingest("verify", tmp_path).stdout


def test_the_same_bytes_again_and_after_a_stop(clips: Path, pairs: Path, tmp_path: Path) -> None:
    """By one worker, and where one of the units is missing."""
    assert seer_ingest("tracks", clips, *TRACKS[:-1], 1, "--out", tmp_path).returncode == 0
    assert files(tmp_path) == files(pairs)
    for name in ("00001.parquet", "00001.tar", "manifest.parquet"):
        (tmp_path / name).unlink()
    assert seer_ingest("tracks", clips, *TRACKS, "--out", tmp_path).returncode == 0
    assert files(tmp_path) == files(pairs)


def test_seer_pipe_has_the_verb(clips: Path, pairs: Path, tmp_path: Path) -> None:
    done = seer_ingest("tracks", clips, *TRACKS, "--out", pairs, "--json", program=main)
    assert (done.returncode, json.loads(done.stdout)["samples"]) == (0, 6)
    assert "seer-pipe tracks [OPTIONS]" in seer_ingest("tracks", "--help", program=main).stdout
    refused = seer_ingest("tracks", tmp_path, "--out", tmp_path / "out", program=main)
    assert (refused.returncode, refused.stderr.count("\n")) == (2, 1)
    assert refused.stderr.startswith("error: ")


@pytest.mark.slow
def test_a_kill_costs_nothing(clips: Path, pairs: Path, tmp_path: Path) -> None:
    """With SIGKILL, when some units are done and others are not."""
    command = [str(word) for word in ("tracks", clips, *TRACKS, "--out", tmp_path)]
    running = subprocess.Popen([*COMMAND, *command], start_new_session=True, stderr=subprocess.DEVNULL)
    until(lambda: any(tmp_path.glob("0*.parquet")) or running.poll() is not None, patience=300)
    os.killpg(running.pid, signal.SIGKILL)
    running.wait()
    assert seer_ingest(*command).returncode == 0
    assert files(tmp_path) == files(pairs)


def test_a_damaged_clip_is_rejected_alone(clips: Path, tmp_path: Path) -> None:
    shutil.copytree(clips, tmp_path, dirs_exist_ok=True)
    row, tar = stored(clips)[0], bytearray((clips / "00000.tar").read_bytes())
    tar[row["offset"] + 1000] ^= 1
    (tmp_path / "00000.tar").write_bytes(tar)
    assert seer_ingest("tracks", tmp_path, *TRACKS, "--out", tmp_path / "out").returncode == 0
    assert rejected(tmp_path / "out")["kind/0.mp4#000000"] == "unreadable"
    assert {row["clip_key"] for row in stored(tmp_path / "out")} == {"000002", "000004"}


def test_what_cannot_be_is_said_in_a_line(
    clips: Path, pairs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*arguments: object) -> str:
        run = seer_ingest("tracks", *arguments)
        assert run.returncode == 2
        (said,) = run.stderr.splitlines()
        return said

    out = ("--out", tmp_path / "out")
    assert "holds pairs of pictures, and no video clips" in error(pairs, *out)
    assert "no shard set here" in error(tmp_path, *out)
    assert "frames = 0: at least 1" in error(clips, "--frames", 0, *out)
    assert "patch = 2.0: a share of the frame's short side" in error(clips, "--patch", 2, *out)
    assert "holds the clips; choose another place" in error(clips, "--out", clips)
    assert "begun with another frames (10, now 30)" in error(clips, "--unit", 2, "--out", pairs)
    monkeypatch.setitem(sys.modules, "cv2", None)
    assert "tracks need OpenCV and PyAV" in error(clips, *out)
    assert "pip install 'seer-pipe[tracks]'" in error(clips, *out)
    assert not (tmp_path / "out").exists()
