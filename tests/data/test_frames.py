"""Several frames of a clip as views: which ones, what is cut from them, and what takes them and what does not."""

import io
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

import seer_pipe
from seer_pipe.config import Frames, Views
from seer_pipe.data.dali import Augmenter, BadImages
from seer_pipe.data.media import Clips, decode_frames
from seer_pipe.data.seen import Maker
from seer_pipe.data.sources import open_data
from seer_pipe.data.views import CropSpec, draw, draw_shares
from seer_pipe.errors import UserError
from seer_pipe.report.crops import draw_crops
from seer_pipe.shards import ShardSet
from seer_pipe.shards.members import member
from seer_pipe.train.build import build_crops
from tests.data.loading import batches
from tests.media import jpeg, make_clips, mp4
from tests.train.helpers import losses, make_pictures, small, train

COUNT, RATE, NUMBERED = 12, 10, 40  # clips of the set; frames a second, and frames, of the clip of numbered frames
GRID = {"count": 1, "size": 16, "scale": [0.8, 0.95], "layout": "grid", "grid": {"side": 2, "patch": 1.2}}
CROPS = [{"count": 1, "size": 24, "scale": [0.3, 1]}, {"count": 1, "size": 16, "scale": [0.1, 0.3]}]
VIEWS = {"crops": CROPS, "frames": {"count": 3, "fps": 5}}


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_clips(tmp_path_factory.mktemp("clips") / "set", COUNT)


@pytest.fixture(scope="module")
def numbered() -> bytes:
    """Four seconds of frames whose brightness is their number, stored in another order than they are shown."""
    return mp4([np.full((32, 64, 3), 6 * n, np.uint8) for n in range(NUMBERED)], RATE, bf="2", crf="1")


def numbers(frames: list[npt.NDArray[np.uint8]]) -> list[int]:
    return [round(float(frame.mean()) / 6) for frame in frames]


@pytest.mark.parametrize("fps", [10.0, 8.0, 3.3, 30.0])
def test_frames_are_those_on_show_at_their_moments(numbered: bytes, fps: float) -> None:
    """The first anywhere that leaves room for the others."""
    frames = Frames(count=4, fps=fps)
    for at in [*np.arange(0, 1, 0.04), 0.9999]:
        found, first = decode_frames(numbered, float(at), frames)
        assert first == pytest.approx(at * (4 - 3 / fps))
        moments = first + np.arange(4) / fps
        assert numbers(found) == np.floor(moments * RATE + 1e-6).astype(int).tolist(), at


def test_of_a_clip_too_short_the_last_frame_stays(numbered: bytes) -> None:
    for at in (0.0, 0.7):
        found, first = decode_frames(numbered, at, Frames(count=6, fps=1))
        assert (first, numbers(found)) == (0, [0, 10, 20, 30, 39, 39])


def samples(root: Path) -> tuple[list[npt.NDArray[np.uint8]], npt.NDArray[np.int64]]:
    """The clips of a set and their sides, of pixels."""
    shards = ShardSet.open(root)
    rows = [(shard, row) for shard in range(2) for row in shards.sidecar(shard).to_pylist()]
    data = [np.frombuffer(shards.read(shard, row), np.uint8) for shard, row in rows]
    return data, np.array([row["height"] for _, row in rows])


def test_each_frame_has_the_crops_that_it_alone_would_have_in_that_place(clips: Path) -> None:
    config = small(clips, views=VIEWS)
    both = Views.model_validate(VIEWS | {"crops": [CROPS[0], GRID]})
    grid = both.crops[1].grid
    specs = [
        *build_crops(config)[:3],
        *(CropSpec(1, 16, (0.8, 0.95), layout="grid", grid=grid, picture=at) for at in range(3)),
    ]
    assert both.count == 3 * (1 + 4)
    data, side = samples(clips)
    keys, epochs = np.arange(len(data)), np.zeros(len(data), np.int64)
    maker = Maker(specs, None, both.frames, seed=5, max_batch=8)
    seen = maker(data, epochs, keys, side, side)
    maker.close()
    assert [tuple(crop.shape[1:]) for crop in seen.crops] == both.shapes
    assert seen.of == [0, 1, 2, *[0] * 4, *[1] * 4, *[2] * 4]
    opener = Clips(Frames(count=3, fps=5))
    frames = opener(data, draw_shares(5, epochs, keys))
    opener.close()
    of_one = [CropSpec(3, 24, (0.3, 1.0)), CropSpec(3, 16, (0.8, 0.95), layout="grid", grid=grid)]
    views = draw(5, epochs, keys, side, side, of_one)
    for crop, view, of in zip(seen.crops, views, seen.of, strict=True):
        alone = Augmenter([CropSpec(1, crop.shape[-1], (1, 1))], max_batch=8)
        (expected,) = alone(frames[of], [view])
        alone.close()
        assert torch.equal(crop, expected)
    assert [bytes(one) for one in seen.pictures[3]] == [bytes(each[3]) for each in frames]


def test_batches_do_not_depend_on_ranks_or_start(clips: Path) -> None:
    config = small(clips, views=VIEWS)
    made = partial(batches, ShardSet.open(clips), crops=build_crops(config), frames=config.views.frames)
    whole = made(0, 3)
    assert all(map(torch.equal, made(2, 3)[0].crops, whole[2].crops))
    halves = [made(1, 3, rank, 2) for rank in (0, 1)]
    for step, batch in enumerate(whole[1:]):
        joined = map(torch.cat, zip(*(half[step].crops for half in halves), strict=True))
        assert all(map(torch.equal, joined, batch.crops))


def test_what_is_no_clip_or_is_damaged_is_replaced(clips: Path) -> None:
    data, side = samples(clips)
    data[1] = np.frombuffer(member("k.flac", b"sound"), np.uint8)
    data[2] = np.frombuffer(jpeg(Image.new("RGB", (64, 64))), np.uint8)
    data[4] = np.frombuffer(member("k.mp4", b"no clip"), np.uint8)
    config = small(clips, views=VIEWS)
    maker = Maker(build_crops(config), None, config.views.frames, seed=5, max_batch=8)
    keys = np.arange(len(data))
    with pytest.raises(BadImages) as caught:
        maker(data, keys * 0, keys, side, side)
    maker.close()
    assert caught.value.indices == [1, 2, 4]
    first, second, third = caught.value.reasons
    assert first == "no clip: its members are flac"
    assert second.startswith("its members cannot be told apart")
    assert third.startswith("does not decode")


def test_what_cannot_be_is_said_in_a_line(clips: Path, tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "pictures", [8])
    for root, views, said in (
        (pictures, VIEWS, "holds images; what is asked for takes video clips"),
        (clips, VIEWS | {"frames": None}, "holds video clips; what is asked for takes images"),
    ):
        config = small(root, views=views)
        with pytest.raises(UserError, match=said):
            open_data(config.data, 8, 0, config.views.media)
    for more, said in (
        ({"sound": {"seconds": 1}}, "frames go with no sound"),
        ({"pictures": 2}, "frames go with pict"),
    ):
        with pytest.raises(UserError, match=said):
            small(clips, views=VIEWS | more)
    with pytest.raises(UserError, match=r"objective jigsaw takes patches of one picture, and no views.frames"):
        small(clips, views=VIEWS | {"crops": [GRID | {"layout": "shuffled_grid"}]}, objective={"name": "jigsaw"})
    with pytest.raises(UserError, match="has those of clips"):
        seer_pipe.views(small(clips, views=VIEWS))


def test_an_objective_that_compares_crops_trains_on_them(clips: Path, tmp_path: Path) -> None:
    config = small(clips, views=VIEWS, train={"images": 16},
                   objective={"name": "simclr", "head": {"hidden": [16], "dim": 8}})  # fmt: skip
    assert train(config, tmp_path / "run", say=lambda _: None)
    assert all(np.isfinite(list(losses(tmp_path / "run").values())))
    draw_crops(config, tmp_path / "crops.png", images=2, step=0)
    assert Image.open(io.BytesIO((tmp_path / "crops.png").read_bytes())).width > 3 * 112
