"""Clips and pictures with their sounds: which frame, which sound, and what becomes of those that do not decode."""

import io
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import seer_pipe
from seer_pipe.config import Sound
from seer_pipe.data.dali import Augmenter, BadImages
from seer_pipe.data.loader import Loader
from seer_pipe.data.media import Media, decode_frames, decode_sound, pictures_at, still, window
from seer_pipe.data.order import Plan
from seer_pipe.data.views import CropSpec, centre, draw_moments, middle
from seer_pipe.shards import ShardSet
from tests.data.loading import batches
from tests.media import Members, flac, jpeg, make_pairs, mp4, tone, write_pairs

SIDE, FRAMES, RATE = 32, 40, 10  # of the clip of numbered frames: pixels, frames, frames a second
HEARD = Sound(spectrum="log_mel", bands=16, seconds=0.4)
CROPS = [CropSpec(1, 24, (0.3, 1.0)), CropSpec(1, 16, (0.1, 0.3))]


def numbered(number: int) -> npt.NDArray[np.uint8]:
    """A frame whose brightness is its number."""
    return np.full((SIDE, 2 * SIDE, 3), 6 * number, np.uint8)


@pytest.fixture(scope="module")
def clip() -> bytes:
    """Four seconds, a key frame every 16 frames, and frames that are stored in another order than they are shown."""
    return mp4([numbered(n) for n in range(FRAMES)], RATE, bf="2", crf="1")


def number_of(frame: npt.NDArray[np.uint8]) -> int:
    return round(float(frame.mean()) / 6)


def test_the_frame_is_the_one_on_show(clip: bytes) -> None:
    """The last that begins no later: not the nearest, which is the next one for every other moment here."""
    for at in [*np.arange(0, 1, 0.0125), 0.9999]:
        (frame,), moment = decode_frames(clip, float(at))
        assert moment == pytest.approx(4 * at)
        assert number_of(frame) == int(moment * RATE + 1e-9), at


def test_a_clips_picture_is_an_image_of_its_frame(clip: bytes) -> None:
    (picture,), moment = pictures_at({"mp4": clip, "flac": b""}, 0.625)
    assert moment == pytest.approx(2.5)
    augmenter = Augmenter([CropSpec(1, SIDE, (1, 1))], threads=1, max_batch=1)
    view = [centre(np.array([SIDE]), np.array([2 * SIDE]), SIDE, SIDE)]
    (pixels,) = augmenter([picture], view)
    augmenter.close()
    assert (pixels.std(dim=(2, 3)) < 0.02).all()  # of one grey throughout
    assert number_of(np.asarray(Image.open(io.BytesIO(picture.tobytes())))) == 25


@pytest.mark.parametrize("rate", [16_000, 24_000, 44_100])
def test_sound_is_the_mean_of_its_channels_at_the_rate_asked_for(rate: int) -> None:
    both = np.stack([tone(440, 1.0, rate), tone(880, 1.0, rate)])
    wave = decode_sound(flac(both, rate), 16_000)
    assert len(wave) == pytest.approx(16_000, abs=2)
    expected = (tone(440) + tone(880)) / 2
    inner = slice(500, 15_000)  # the filter rings at the ends
    assert np.abs(wave[inner] - expected[inner]).max() < (1e-4 if rate == 16_000 else 0.02)


def test_the_window_is_around_its_moment_and_silent_past_the_sound() -> None:
    wave, sound = np.arange(1, 16_001, dtype=np.float32), Sound(spectrum="log_mel", seconds=0.5)
    assert window(wave, 0.5, sound)[[0, -1]].tolist() == [4001, 12_000]
    assert window(wave, 0.1, sound)[[0, -1]].tolist() == [1, 8000]  # within the sound, where that is long enough
    assert window(wave, 0.9, sound)[[0, -1]].tolist() == [8001, 16_000]
    short = window(wave[:100], 0.0, sound)
    assert short[:100].tolist() == wave[:100].tolist()
    assert not short[100:].any()


def test_moments_are_drawn_of_seed_pass_and_sample_alone() -> None:
    numbers = np.arange(20_000)
    drawn = draw_moments(3, 1, numbers, Sound())
    assert 0 <= drawn.at.min() < 0.001
    assert 0.999 < drawn.at.max() < 1
    assert np.abs(drawn.shift).max() == pytest.approx(0.5, abs=1e-3)
    assert (drawn.gain.min(), drawn.gain.max()) == pytest.approx((0.9, 1.1), abs=1e-3)
    assert abs(np.corrcoef([drawn.at, drawn.shift, drawn.gain]) - np.eye(3)).max() < 0.03
    some = draw_moments(3, np.array([1, 2]), np.array([7, 7]), Sound())
    assert some.at[0] == drawn.at[7] != some.at[1]
    assert draw_moments(4, 1, numbers[:1], Sound()).at[0] != drawn.at[0]


def tones(clip: bytes) -> list[tuple[str, Members, int, int]]:
    """Clips of numbered frames whose sound is a chirp, so that a window of it says when it is."""
    times = np.arange(4 * 16_000) / 16_000
    chirp = (0.5 * np.sin(2 * np.pi * (200 * times + 200 * times**2))).astype(np.float32)
    members = {"flac": flac(chirp), "json": b"{}", "mp4": clip}
    return [("chirp", members, 2 * SIDE, SIDE)] * 12


heard = partial(batches, crops=CROPS, sound=HEARD)


def test_picture_and_sound_are_of_one_moment(clip: bytes, tmp_path: Path) -> None:
    """At 200 + 400 t Hz after t seconds, within the shift and the width of a band."""
    sound = Sound(spectrum="log_mel", bands=100, seconds=0.2, shift=0.0)
    still_frames = CropSpec(1, 24, (0.3, 1.0), CROPS[0].augment.model_copy(update={"jitter_p": 0.0, "grey_p": 0.0}))
    shards = ShardSet.open(write_pairs(tmp_path / "set", tones(clip)))
    loader = Loader(shards, Plan(shards.counts, 8, seed=3), np.arange(8), [still_frames], sound, seed=3)
    (batch,) = loader.batches(0, 1)
    loader.close()
    grey = (batch.crops[0] * 0.226 + 0.449).mean(dim=(1, 2, 3)) * 255 / 6  # a frame's number
    loudest = batch.crops[1].mean(dim=2).argmax(dim=2)[:, 0]
    mel = (loudest + 1) * 2595 * np.log10(1 + 8000 / 700) / 101
    moments = (700 * (10 ** (mel.numpy() / 2595) - 1) - 200) / 400
    assert np.unique(grey.round()).size > 3
    assert np.abs(moments.clip(0.1, 3.9) - ((grey.numpy() + 0.5) / RATE).clip(0.1, 3.9)).max() < 0.35


def test_pairs_come_alike_from_any_start_and_on_any_rank(tmp_path: Path) -> None:
    shards = ShardSet.open(make_pairs(tmp_path / "set", 20))
    straight, resumed = heard(shards, 0, 4), heard(shards, 2, 4)
    shared = [heard(shards, 2, 4, rank, 2) for rank in range(2)]
    assert [tuple(crop.shape) for crop in straight[0].crops] == [(8, 3, 24, 24), (8, 3, 16, 16), (8, *HEARD.shape)]
    for step, batch in enumerate(resumed):
        for place, crop in enumerate(batch.crops):
            assert torch.equal(crop, straight[2 + step].crops[place])
            torch.testing.assert_close(torch.cat([ranks[step].crops[place] for ranks in shared]), crop)


@pytest.mark.gpu
def test_pairs_on_a_gpu_are_those_on_a_cpu(tmp_path: Path) -> None:
    """Spectrograms up to the order of their sums, pictures up to the rounding of levels."""
    shards = ShardSet.open(make_pairs(tmp_path / "set", 20))
    for one, other in zip(heard(shards, 0, 3, device="cuda"), heard(shards, 0, 3), strict=True):
        assert all(crop.is_cuda for crop in one.crops)
        *pictures, spectrogram = [crop.cpu() for crop in one.crops]
        torch.testing.assert_close(spectrogram, other.crops[-1], rtol=1e-3, atol=1e-3)
        for picture, meant in zip(pictures, other.crops[:-1], strict=True):
            assert (picture - meant).abs().mean() < 0.02


def test_samples_that_lack_a_part_or_are_damaged_are_replaced_with_their_reasons(clip: bytes, tmp_path: Path) -> None:
    good = tones(clip)
    bad = [
        ("silent", {"mp4": clip, "json": b"{}"}, 2 * SIDE, SIDE),
        ("unseen", {"flac": flac(tone(440))}, 2 * SIDE, SIDE),
        ("cut", {"mp4": clip[: len(clip) // 2], "flac": flac(tone(440))}, 2 * SIDE, SIDE),
        ("noise", {"jpg": b"no image", "flac": b"no sound at all, whatever its name is"}, 2 * SIDE, SIDE),
        ("broken picture", {"jpg": jpeg(Image.new("RGB", (9, 9)))[:90], "flac": flac(tone(440))}, 9, 9),
    ]
    shards = ShardSet.open(write_pairs(tmp_path / "set", [*good, *bad]))
    found = {r.index: r.reason for batch in heard(shards, 0, 4) for r in batch.replaced}
    assert sorted(found) == list(range(12, 17))
    assert "no sound: its members are mp4, json" in found[12]
    assert "no picture: its members are flac" in found[13]
    assert all(found[index].startswith("does not decode") for index in (14, 15, 16))
    assert all("\n" not in reason for reason in found.values())


def test_all_faults_of_a_batch_are_named_at_once(clip: bytes) -> None:
    media = Media(HEARD)
    with pytest.raises(BadImages) as caught:
        media([np.frombuffer(data, np.uint8) for data in (b"x" * 1024, b"")], middle(2))
    media.close()
    assert caught.value.indices == [0, 1]


def test_the_stream_gives_the_members_and_an_images_still_is_itself(tmp_path: Path) -> None:
    root = make_pairs(tmp_path / "set", 8)
    sample = next(iter(seer_pipe.stream(root, 8)))
    assert {"jpg", "flac", "json", "__key__"} <= sample.keys()
    image = np.frombuffer(sample["jpg"], np.uint8)
    assert still(image) is image
