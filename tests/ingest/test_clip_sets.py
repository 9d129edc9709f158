"""Whole runs over videos and sounds: what is stored, what is not, and what the tools say of such a set."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tarfile
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from threading import Thread

import numpy as np
import pytest
import webdataset
from PIL import Image

from ingest.media import MediaSettings, process
from ingest.workers import DecoderPool
from seer_pipe.shards import ShardSet, members_of
from tests.ingest.films import corners, film, frames_of, samples_of, tone
from tests.ingest.helpers import COMMAND, files, rejected, seer_ingest, stored, until

FRAMES = [k / 25 for k in range(55)]  # of 2.2 s
CUT = ("--media", "video", "--clip-seconds", 1, "--min-seconds", 0.5, "--workers", 1)


def heard(hertz: float = 440.0, seconds: float = 2.2) -> bytes:
    return film([time for time in FRAMES if time < seconds], draw=corners, sound=tone(seconds, 48_000, hertz=hertz))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three that are stored, one of them without sound, and five that are not."""
    folder = tmp_path_factory.mktemp("films")
    (folder / "a.mp4").write_bytes(heard())
    (folder / "b.webm").write_bytes(film(FRAMES, draw=corners, format="webm"))
    (folder / "c").write_bytes(heard(880, 1.0))
    (folder / "cut.mp4").write_bytes(heard()[:-2000])
    (folder / "empty.mp4").write_bytes(b"")
    (folder / "page.mp4").write_text("<!DOCTYPE html><html>")
    (folder / "same.mov").write_bytes(heard())
    (folder / "sound.mp3").write_bytes(film(sound=tone(2.2, 48_000), format="mp3", codecs=("", "libmp3lame")))
    return folder


REJECTED = {
    "cut.mp4": "truncated", "empty.mp4": "empty", "page.mp4": "not_media", "same.mov": "duplicate",
    "sound.mp3": "no_video",
}  # fmt: skip


@pytest.fixture(scope="module")
def videos(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("sets") / "videos"
    run = seer_ingest("folder", folder, *CUT, "--out", out)
    assert run.returncode == 0, run.stderr
    assert "5 video clips in 1 shard" in run.stdout
    assert "8 inputs: 3 stored, 5 rejected" in run.stdout
    return out


def test_every_input_is_cut_or_rejected(folder: Path, videos: Path) -> None:
    assert rejected(videos) == REJECTED
    rows = stored(videos)
    assert [(row["source"], row["clip"], row["key"]) for row in rows] == [
        ("a.mp4", 0, "00000-000000-0000"), ("a.mp4", 1, "00000-000000-0001"),
        ("b.webm", 0, "00000-000001-0000"), ("b.webm", 1, "00000-000001-0001"),
        ("c", 0, "00000-000002-0000"),
    ]  # fmt: skip
    assert {row["format"] for row in rows} == {"mov/h264+aac", "matroska/vp9"}
    assert [row["audio_rate"] for row in rows] == [24_000, 24_000, None, None, 24_000]
    assert {(row["width"], row["height"], row["frame_rate"], row["frames"]) for row in rows} == {(96, 64, 16.0, 16)}
    again = process((folder / "a.mp4").read_bytes(), MediaSettings(clip_seconds=1, min_seconds=0.5))
    shards = ShardSet.open(videos)
    assert shards.media == "video"
    members = members_of(shards.read(0, shards.sidecar(0).slice(1, 1).to_pylist()[0]))
    assert list(members) == ["mp4", "flac", "json"]
    assert members["mp4"] == again.clips[1].video
    assert members["flac"] == again.clips[1].audio
    assert json.loads(members["json"]) == {
        "source": "a.mp4", "clip": 1, "start": 1.0, "duration": 1.0, "frame_rate": 16.0, "frames": 16, "width": 96,
        "height": 64, "audio_rate": 24_000, "sha256": rows[1]["sha256"],
    }  # fmt: skip


def test_webdataset_reads_it(videos: Path) -> None:
    found = list(webdataset.WebDataset(str(videos / "00000.tar"), shardshuffle=False))
    assert [sorted(key for key in sample if not key.startswith("__")) for sample in found] == [
        ["flac", "json", "mp4"], ["flac", "json", "mp4"], ["json", "mp4"], ["json", "mp4"], ["flac", "json", "mp4"],
    ]  # fmt: skip
    assert len(frames_of(found[4]["mp4"])) == 16
    assert len(samples_of(found[4]["flac"])) == 24_000


def test_sound(folder: Path, tmp_path: Path) -> None:
    out = tmp_path / "sounds"
    run = seer_ingest("folder", folder, "--media", "audio", "--clip-seconds", 1, "--audio-rate", 16_000, "--out", out)
    assert run.returncode == 0, run.stderr
    assert rejected(out) == {
        "b.webm": "no_sound", "cut.mp4": "truncated", "empty.mp4": "empty", "page.mp4": "not_media",
        "same.mov": "duplicate",
    }  # fmt: skip
    assert [row["source"] for row in stored(out)] == ["a.mp4", "a.mp4", "c", "sound.mp3", "sound.mp3"]
    with tarfile.open(out / "00000.tar") as tar:
        names = tar.getnames()
    assert names[:4] == [f"00000-000000-000{k}.{extension}" for k in (0, 1) for extension in ("flac", "json")]
    assert "5 audio clips" in seer_ingest("stats", out).stdout
    assert seer_ingest("verify", out, "--clips").returncode == 0
    assert seer_ingest("show", out, tmp_path / "sheet.png").returncode == 0


def test_archives_tars_and_urls_hold_the_same(folder: Path, videos: Path, tmp_path: Path) -> None:
    with tarfile.open(tmp_path / "films.tar", "w") as tar, tarfile.open(tmp_path / "set.tar", "w") as samples:
        for path in sorted(folder.iterdir()):
            tar.add(path, path.name)
            samples.add(path, f"{path.stem}.mp4")
            info = tarfile.TarInfo(f"{path.stem}.json")
            info.size = len(about := json.dumps({"title": path.name, "duration": 9}).encode())
            samples.addfile(info, BytesIO(about))
    handler = partial(SimpleHTTPRequestHandler, directory=folder)
    handler.log_message = lambda *_: None  # type: ignore[attr-defined]
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    Thread(target=server.serve_forever, daemon=True).start()
    host = f"http://127.0.0.1:{server.server_port}"
    (tmp_path / "list.txt").write_text("\n".join(f"{host}/{path.name}" for path in sorted(folder.iterdir())))
    try:
        for verb, source, *more in (
            ("archive", tmp_path / "films.tar"),
            ("webdataset", tmp_path / "set.tar", "--keep-columns", "title,duration"),
            ("urls", tmp_path / "list.txt", "--allow-network", "127.0.0.0/8"),
        ):
            run = seer_ingest(verb, source, *CUT, *more, "--out", tmp_path / verb)
            assert run.returncode == 0, run.stderr
            assert sorted(rejected(tmp_path / verb).values()) == sorted(REJECTED.values())
            assert [row["sha256"] for row in stored(tmp_path / verb)] == [row["sha256"] for row in stored(videos)]
    finally:
        server.shutdown()
        server.server_close()
    kept = [(row["title"], row["duration"], row["input_duration"]) for row in stored(tmp_path / "webdataset")]
    assert kept[:3] == [("a.mp4", 1.0, "9"), ("a.mp4", 1.0, "9"), ("b.webm", 1.0, "9")]


def test_the_tools_understand_it(videos: Path, tmp_path: Path) -> None:
    told = seer_ingest("stats", videos).stdout
    assert "5 video clips in 1 shard" in told
    assert "0.1 min, of 3 sources; 3 with sound" in told
    assert "short side      least 64" in told
    assert "mov/h264+aac 3, matroska/vp9 2" in told
    assert json.loads(seer_ingest("stats", videos, "--json").stdout)["seconds"] == 5.0
    checked = seer_ingest("verify", videos, "--clips")
    assert checked.returncode == 0, checked.stdout
    assert seer_ingest("show", videos, tmp_path / "sheet.png", "--samples", 4).returncode == 0
    with Image.open(tmp_path / "sheet.png") as sheet:
        pixels = np.asarray(sheet.convert("RGB")).astype(int)
    for colour in ((52, 101, 164), (200, 30, 30), (30, 180, 30)):  # a waveform, and the frames' own
        assert (np.abs(pixels - colour).max(-1) < 25).sum() > 200


def test_damage_is_found(videos: Path, tmp_path: Path) -> None:
    for path in videos.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    row = stored(videos)[2]
    tar = bytearray((videos / "00000.tar").read_bytes())
    tar[row["offset"] + 1000] ^= 1
    (tmp_path / "00000.tar").write_bytes(tar)
    checked = seer_ingest("verify", tmp_path)
    assert checked.returncode == 1
    assert "00000-000001-0000 its bytes do not have the checksums" in checked.stdout
    assert "the tar's size or hash is not that of the manifest" in checked.stdout
    (tmp_path / "00000.tar").write_bytes(tar[: row["offset"] + 1000])
    assert f"00000-000001-0000 1000 bytes instead of {row['length']}" in seer_ingest("verify", tmp_path).stdout


def test_dedup_compares_bytes_and_not_looks(tmp_path: Path) -> None:
    """All clips of a standing picture look alike; the same source twice, in two shards, is the same."""
    (tmp_path / "in").mkdir()
    for name, hertz in (("a", 440.0), ("b", 880.0), ("c", 440.0)):
        (tmp_path / "in" / f"{name}.mp4").write_bytes(heard(hertz))
    assert seer_ingest("folder", tmp_path / "in", *CUT, "--unit", 1, "--out", tmp_path / "out").returncode == 0
    assert len(stored(tmp_path / "out")) == 6
    assert json.loads(seer_ingest("dedup", tmp_path / "out", "--json").stdout)["same"] == 2
    assert ShardSet.open(tmp_path / "out").excluded.tolist() == [4, 5]


@pytest.mark.slow
def test_a_kill_costs_nothing(folder: Path, tmp_path: Path) -> None:
    """With SIGKILL, when some units are done and others are not."""
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    command = [str(word) for word in ("folder", folder, *CUT, "--unit", 1, "--out")]
    assert seer_ingest(*command, whole).returncode == 0
    process = subprocess.Popen([*COMMAND, *command, str(killed)], start_new_session=True, stderr=subprocess.DEVNULL)
    until(lambda: any(killed.glob("0*.parquet")) or process.poll() is not None, patience=300)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    assert not (killed / "manifest.parquet").exists()
    done = seer_ingest(*command, killed)
    assert done.returncode == 0, done.stderr
    assert files(killed) == files(whole)


def test_what_cannot_be_is_said_in_a_line(
    folder: Path, videos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def error(*arguments: object) -> str:
        run = seer_ingest(*arguments)
        assert run.returncode == 2
        (line,) = run.stderr.splitlines()
        return line

    out = ("--out", tmp_path / "out")
    assert "--reencode: has no meaning with --media video" in error("folder", folder, *CUT, "--reencode", "never", *out)
    assert "--clip-seconds: has no meaning with --media image" in error("folder", folder, "--clip-seconds", 2, *out)
    assert "holds video clips; --media video reads what is not cut yet" in error("webdataset", videos, *CUT, *out)
    assert "holds video clips" in error("webdataset", videos, *out)
    assert "begun with another clip_seconds (1.0, now 5.0)" in error(
        "folder", folder, "--media", "video", "--min-seconds", 0.5, "--out", videos
    )
    monkeypatch.setitem(sys.modules, "av", None)
    assert "video and audio need PyAV: pip install 'seer-pipe[media]'" in error("folder", folder, *CUT, *out)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_memory_of_a_worker_is_bounded_on_4k(tmp_path: Path) -> None:
    """3840 x 2160: within 400 MiB of data, and the peak does not grow with the length."""
    peaks = []
    for seconds in (1, 6):
        times = [k / 5 for k in range(5 * seconds)]
        path = tmp_path / f"{seconds}.mp4"
        path.write_bytes(film(times, draw=corners, size=(3840, 2160), rate=5))
        script = (
            "import resource, sys; from ingest.media import *\n"
            "resource.setrlimit(resource.RLIMIT_DATA, (400 << 20, 400 << 20))\n"
            "made = process(open(sys.argv[1], 'rb').read(), MediaSettings(clip_seconds=1))\n"
            "print(len(made.clips), made.clips[0].width, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
        )
        run = subprocess.run([sys.executable, "-c", script, str(path)], capture_output=True, text=True, timeout=300)
        assert run.returncode == 0, run.stderr
        count, width, peak = map(int, run.stdout.split())
        assert (count, width) == (seconds, 456)
        peaks.append(peak)
    assert peaks[1] < 1.1 * peaks[0]
    with DecoderPool(MediaSettings(max_pixels=1 << 22), 1, processor=process) as pool:
        assert "too_many_pixels" in str(pool.submit(path.read_bytes()).exception())
