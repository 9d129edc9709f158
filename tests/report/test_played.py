"""What the atlas of a set of clips plays: the pictures as they are with their sound; nothing of what is damaged."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest

from seer_pipe.data.media import decode_sound
from seer_pipe.report import atlas, clusters
from seer_pipe.report.atlas import write_atlas
from seer_pipe.report.played import Player, playable, together
from seer_pipe.shards import ShardSet
from tests.browser import assert_no_violations, keep_screenshot, show, wait
from tests.media import Members, flac, make_clips, make_pairs, mp4, tone, write_pairs
from tests.report.test_atlas import script, write_embeddings
from tests.train.helpers import make_pictures


def drawn(count: int = 12) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [np.kron(rng.integers(0, 256, (4, 4, 3), np.uint8), np.ones((16, 16, 1), np.uint8)) for _ in range(count)]


def frames_of(clip: bytes) -> list[tuple[float, np.ndarray]]:
    with av.open(io.BytesIO(clip)) as container:
        return [(float(frame.time), frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]


@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_pictures_stay_as_they_are_and_the_sound_is_heard_beside(rate: int) -> None:
    clip, sound = mp4(drawn(), rate=12), flac(tone(440, 1.0, rate), rate)
    both = together(clip, sound)
    for (moment, one), (expected, other) in zip(frames_of(both), frames_of(clip), strict=True):
        assert moment == pytest.approx(expected, abs=1e-3)
        assert np.array_equal(one, other)
    wave = decode_sound(both, 16_000)
    assert len(wave) / 16_000 == pytest.approx(1, abs=0.1)  # AAC has a frame of silence before it
    power = np.abs(np.fft.rfft(wave[1600:14400]))
    assert np.fft.rfftfreq(12800, 1 / 16_000)[power.argmax()] == pytest.approx(440, abs=5)


def test_what_a_sample_plays() -> None:
    clip, sound = mp4(drawn(3)), flac(tone(440))
    assert playable({"mp4": clip, "json": b"{}"}) == ("mp4", clip)
    assert playable({"jpg": b"", "flac": sound}) == ("flac", sound)
    assert playable({"0.jpg": b"", "1.jpg": b""}) is None
    kind, data = playable({"mp4": clip, "wav": sound}) or ("", b"")
    assert (kind, data[4:8]) == ("mp4", b"ftyp")


def write(root: Path, members: Sequence[Members]) -> ShardSet:
    return ShardSet.open(write_pairs(root, [(f"{n}", one, 64, 64) for n, one in enumerate(members)], media="video"))


def test_what_is_damaged_is_not_played(tmp_path: Path) -> None:
    whole = {"mp4": mp4(drawn(3)), "flac": flac(tone(440))}
    shards = write(tmp_path / "set", [whole, whole | {"flac": b"no sound"}, whole | {"mp4": b"no clip"}, whole])
    stored = [shards.read(0, row) for row in shards.sidecar(0).to_pylist()]
    player = Player(tmp_path / "clips", [0, 1, 2, 4])
    for number, sample in enumerate([*stored, b"an image"]):
        player(number, sample)
    assert player.kinds == {0: "mp4"}  # the fourth one is not asked for, the last one is no run of members
    assert [file.name for file in (tmp_path / "clips").iterdir()] == ["0.mp4"]


def made_atlas(root: Path, data: Path, count: int) -> Path:
    shards = ShardSet.open(data)
    names = [(path, index) for path, length in zip(shards.paths, shards.counts, strict=True) for index in range(length)]
    keys = [key for number in range(len(shards.paths)) for key in shards.sidecar(number)["key"].to_pylist()]
    write_embeddings(root / "e.parquet", keys, [path for path, _ in names], [index for _, index in names],
                     np.arange(count) % 3, np.random.default_rng(0).standard_normal((count, 8)))  # fmt: skip
    return write_atlas(root, root / "atlas", str(data), embeddings=root / "e.parquet")


@pytest.mark.parametrize(("make", "kind"), [(make_clips, "mp4"), (make_pairs, "flac"), (make_pictures, None)])
def test_an_atlas_plays_its_clips_and_sounds(make: Any, kind: str | None, tmp_path: Path) -> None:
    data = make_pictures(tmp_path / "set", [4, 5]) if kind is None else make(tmp_path / "set", 9)
    page = made_atlas(tmp_path, data, 9)
    about = script(page, "data.js")
    assert about["played"] == ({} if kind is None else {str(number): kind for number in range(9)})
    clips = {file.name for file in (page.parent / "clips").glob("*")}
    assert clips == ({f"{number}.{kind}" for number in range(9)} if kind else set())


def test_of_many_those_of_the_lists_play(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(atlas, "PLAYED", 20)
    monkeypatch.setattr(clusters, "OUTLIERS", 5)
    data = make_pairs(tmp_path / "set", 60)
    about = script(made_atlas(tmp_path, data, 60), "data.js")
    listed = {str(image) for image in about["outliers"]}
    typical = {str(first + at) for first in about["start"][:-1] for at in range(about["show"])}
    assert set(about["played"]) == listed | typical
    assert len(about["played"]) < 60


@pytest.mark.browser
def test_a_clip_plays_with_its_sound_in_the_page(browser: Any, tmp_path: Path) -> None:
    from selenium.webdriver.common.by import By

    page = made_atlas(tmp_path, make_clips(tmp_path / "set", 9, sounds=True), 9)
    show(browser, page.as_uri(), 1280, 900, "light")
    browser.find_element(By.CSS_SELECTOR, "#detail .pictures button").click()
    clip = browser.find_element(By.CSS_SELECTOR, "#detail video")
    assert clip.get_attribute("aria-label") == "What it plays"
    browser.execute_script("arguments[0].play()", clip)
    heard = "return [arguments[0].currentTime, arguments[0].webkitAudioDecodedByteCount, arguments[0].videoWidth]"
    wait(lambda: min(browser.execute_script(heard, clip)) > 0)
    assert browser.execute_script("return arguments[0].duration", clip) == pytest.approx(1, abs=0.1)
    assert_no_violations(browser)
    keep_screenshot(browser, "atlas-of-clips")
