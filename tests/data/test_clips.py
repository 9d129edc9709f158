"""Frames of a clip as one input: cut alike, when they are seen, and what takes them and what does not."""

import io
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import seer_pipe
from seer_pipe import config as settings
from seer_pipe.config import Frames, Sound, Views
from seer_pipe.data.dali import Augmenter, BadImages
from seer_pipe.data.media import Clips, Media
from seer_pipe.data.seen import Maker
from seer_pipe.data.sources import open_data
from seer_pipe.data.views import CropSpec, draw, draw_moments, draw_shares
from seer_pipe.errors import UserError
from seer_pipe.report.crops import draw_crops
from seer_pipe.shards import ShardSet
from seer_pipe.shards.members import member
from seer_pipe.train.build import build_crops, outline, spread_network
from tests.data.loading import batches
from tests.data.test_frames import samples
from tests.data.test_media import numbered
from tests.media import flac, make_clips, mp4, tone
from tests.objectives.union import joined
from tests.train.helpers import make_pictures, small
from tests.train.test_step import ALONE

COUNT = 12  # clips of the set
JOINED = {"count": 3, "fps": 5, "joined": True}
CROPS = [{"count": 2, "size": 24, "scale": [0.3, 1]}, {"count": 1, "size": 16, "scale": [0.1, 0.3]}]
VIEWS: dict[str, Any] = {"crops": CROPS, "frames": JOINED}
HEARD = {"spectrum": "log_mel", "bands": 16, "seconds": 0.4}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clips(tmp_path_factory.mktemp("clips") / "set", COUNT, sounds=True)


def maker_of(config: settings.Config) -> Maker:
    return Maker(build_crops(config), config.views.sound, config.views.frames, seed=5, max_batch=8)


def test_all_frames_are_cut_and_coloured_as_one_alone_would_be(clips: Path) -> None:
    """Each crop sees its clip at a moment of its own, and its views are those of an image in its place."""
    config = small(clips, views=VIEWS)
    data, side = samples(clips)
    keys, epochs = np.arange(len(data)), np.zeros(len(data), np.int64)
    maker = maker_of(config)
    seen = maker(data, epochs, keys, side, side)
    maker.close()
    assert (
        [tuple(crop.shape[1:]) for crop in seen.crops] == config.views.shapes == [(3, 3, 24, 24)] * 2 + [(3, 3, 16, 16)]
    )
    views = draw(5, epochs, keys, side, side, [CropSpec(2, 24, (0.3, 1.0)), CropSpec(1, 16, (0.1, 0.3))])
    opener = Clips(Frames(count=3, fps=5))
    for look, (crop, view) in enumerate(zip(seen.crops, views, strict=True)):
        frames = opener(data, draw_shares(5, epochs, keys, look))
        alone = Augmenter([CropSpec(1, crop.shape[-1], (1, 1))], max_batch=8)
        for number, frame in enumerate(frames):
            assert torch.equal(crop[:, :, number], alone(frame, [view])[0])
        alone.close()
        assert [bytes(one[look]) for one in seen.pictures] == [bytes(one) for one in frames[1]]  # the middle one
    opener.close()
    assert seen.of == [0, 1, 2]


def test_moments_of_crops_are_independent_and_the_first_is_that_of_an_image() -> None:
    keys = np.arange(20_000)
    shares = np.stack([draw_shares(3, 1, keys, look) for look in range(3)])
    assert np.array_equal(shares[0], draw_moments(3, 1, keys, Sound()).at)
    assert abs(np.corrcoef(shares) - np.eye(3)).max() < 0.03


def test_the_frames_of_a_pair_lie_around_the_moment_of_its_sound() -> None:
    """Of a clip of 4 s whose frames' brightness is their number, with a loud tick at each moment."""
    clip = mp4([numbered(n) for n in range(40)], 10, bf="2", crf="1")
    members = {"mp4": clip, "flac": flac(tone(440, 4.0)), "json": b"{}"}
    sample = np.frombuffer(b"".join(member(f"k.{name}", data) for name, data in members.items()), np.uint8)
    heard = Sound(spectrum="log_mel", bands=16, seconds=0.4, shift=0.0)
    media = Media(heard, Frames(count=3, fps=5, joined=True))
    frames, sounds = media([sample], draw_moments(1, 0, np.array([0]), heard))
    media.close()
    assert (len(frames), tuple(sounds.shape)) == (3, (1, *heard.shape))
    at = float(draw_moments(1, 0, np.array([0]), heard).at[0]) * (4 - 2 / 5)
    shown = [round(float(np.asarray(Image.open(io.BytesIO(one.tobytes()))).mean()) / 6) for (one,) in frames]
    assert shown == [int((at + number / 5) * 10 + 1e-6) for number in range(3)]


def test_with_sound_all_crops_are_of_one_moment(clips: Path) -> None:
    config = small(clips, views=VIEWS | {"sound": HEARD}, objective={"name": "image_audio"})
    data, side = samples(clips)
    keys = np.arange(len(data))
    maker = maker_of(config)
    seen = maker(data, keys * 0, keys, side, side)
    maker.close()
    assert [tuple(x.shape[1:]) for x in [*seen.crops, *seen.sounds]] == config.views.shapes
    assert seen.of == [0, 0, 0]
    assert config.views.media == ("video",)


@pytest.mark.parametrize("sound", [None, HEARD])
def test_batches_do_not_depend_on_ranks_or_start(clips: Path, sound: dict[str, Any] | None) -> None:
    objective = {"name": "simclr" if sound is None else "image_audio"}
    config = small(clips, views=VIEWS | {"sound": sound}, objective=objective)
    made = partial(
        batches, ShardSet.open(clips), crops=build_crops(config), sound=config.views.sound, frames=config.views.frames
    )
    whole = made(0, 3)
    assert all(map(torch.equal, made(2, 3)[0].crops, whole[2].crops))
    halves = [made(1, 3, rank, 2) for rank in (0, 1)]
    for step, batch in enumerate(whole[1:]):
        both = map(torch.cat, zip(*(half[step].crops for half in halves), strict=True))
        for one, other in zip(both, batch.crops, strict=True):
            torch.testing.assert_close(one, other)


def test_a_clip_that_does_not_decode_is_replaced(clips: Path) -> None:
    config = small(clips, views=VIEWS)
    data, side = samples(clips)
    data[4] = data[4][: len(data[4]) // 3]
    maker, keys = maker_of(config), np.arange(len(data))
    with pytest.raises(BadImages) as caught:
        maker(data, keys * 0, keys, side, side)
    maker.close()
    assert caught.value.indices == [4]


def test_the_sheet_of_crops_shows_the_frames_side_by_side(clips: Path, tmp_path: Path) -> None:
    draw_crops(small(clips, views=VIEWS), tmp_path / "crops.png", images=2, step=0)
    apart = VIEWS | {"crops": [CROPS[0] | {"size": 128}]}
    draw_crops(small(clips, views=apart), tmp_path / "wide.png", images=2, step=0)
    assert Image.open(tmp_path / "wide.png").width > 2 * 3 * 128 > Image.open(tmp_path / "crops.png").width


def test_what_does_not_go_together_is_said_in_a_line(clips: Path) -> None:
    grid = {"count": 1, "size": 16, "scale": [0.8, 0.95], "layout": "grid"}
    for views, said in (
        (VIEWS | {"crops": [grid]}, "frames that are joined need crops of layout independent"),
        (VIEWS | {"pictures": 2}, "frames go with pictures: 1"),
    ):
        with pytest.raises(UserError, match=said):
            small(clips, views=views)
    with pytest.raises(UserError, match="has those of clips"):
        seer_pipe.views(small(clips, views=VIEWS))
    with pytest.raises(
        UserError, match=r"views.frames.joined: regnety_200mf takes images; .* model.name to r2plus1d_18"
    ):
        outline(small(clips, views=VIEWS))
    with pytest.raises(UserError, match=r"model.name: r2plus1d_18 takes clips, so views.frames must be joined: true"):
        outline(small(clips, model={"name": "r2plus1d_18"}))
    heard = VIEWS | {"sound": HEARD}
    objective = {"name": "image_audio", "sound_model": "r2plus1d_18"}
    with pytest.raises(UserError, match=r"objective.sound_model: r2plus1d_18 takes clips"):
        outline(small(clips, views=heard, model={"name": "r2plus1d_18"}, objective=objective))
    config = small(make_pictures(clips.parent / "pictures", [8]), views=VIEWS)
    with pytest.raises(UserError, match="holds images; what is asked for takes video clips"):
        open_data(config.data, 8, 0, config.views.media)


def test_nhwc_is_of_images(clips: Path) -> None:
    config = small(clips, views=VIEWS, model={"name": "tiny_clips"}, train={"channels_last": True})
    with joined(), pytest.raises(UserError, match=r"train.channels_last: a layout of images, .* set it to auto"):
        spread_network(config, ALONE)


def test_one_crop_of_a_clip_counts_as_one() -> None:
    views = Views.model_validate(VIEWS)
    assert (views.count, views.moments) == (3, 1)
