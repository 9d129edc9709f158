"""Pairs of pictures: which crop is of which, and what takes them and what does not."""

import io
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import seer_pipe
from seer_pipe.data.dali import Augmenter, BadImages
from seer_pipe.data.loader import Loader
from seer_pipe.data.media import still
from seer_pipe.data.seen import Maker
from seer_pipe.data.sources import open_data
from seer_pipe.data.views import CropSpec, draw
from seer_pipe.errors import UserError
from seer_pipe.report.crops import GAP, HEADER, SIDE, WIDTH, draw_crops
from seer_pipe.report.thumbnails import as_seen
from seer_pipe.shards import ShardSet, members_of
from seer_pipe.shards.members import member
from seer_pipe.train.build import build_crops
from tests.data.loading import batches
from tests.media import jpeg, make_tracks
from tests.train.helpers import losses, make_pictures, small, train

COUNT = 24
VIEWS = {"crops": [{"count": 2, "size": 24, "scale": [0.3, 1]}, {"count": 1, "size": 16, "scale": [0.1, 0.3]}],
         "pictures": 2}  # fmt: skip


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_tracks(tmp_path_factory.mktemp("tracks") / "pairs", COUNT)


def samples(root: Path) -> tuple[list[np.ndarray], np.ndarray, np.ndarray]:
    shards = ShardSet.open(root)
    rows = shards.sidecar(0).to_pylist()
    data = [np.frombuffer(shards.read(0, row), np.uint8) for row in rows]
    return data, np.array([row["height"] for row in rows]), np.array([row["width"] for row in rows])


def test_crops_are_of_the_two_pictures_in_turn(pairs: Path) -> None:
    """Bit for bit those that each picture alone would have in that place, with what is drawn for the place."""
    specs = build_crops(small(pairs, views=VIEWS))
    assert [(spec.size, spec.picture) for spec in specs] == [(24, 0), (24, 1), (16, 0)]
    data, height, width = samples(pairs)
    numbers, epochs = np.arange(len(data)), np.zeros(len(data), np.int64)
    maker = Maker(specs, seed=5, max_batch=8)
    seen = maker(data, epochs, numbers, height, width)
    maker.close()
    views = draw(5, epochs, numbers, height, width, [CropSpec(2, 24, (0.3, 1.0)), CropSpec(1, 16, (0.1, 0.3))])
    pictures = [[members_of(one.data)[name] for one in data] for name in ("0.jpg", "1.jpg")]
    assert seen.of == [0, 1, 0]
    for crop, view, of in zip(seen.crops, views, seen.of, strict=True):
        alone = Augmenter([CropSpec(1, crop.shape[-1], (1, 1))], max_batch=8)
        (expected,) = alone(pictures[of], [view])
        alone.close()
        assert torch.equal(crop, expected)
    assert [bytes(one) for one in seen.pictures[3]] == [pictures[0][3], pictures[1][3]]


def test_batches_do_not_depend_on_ranks_or_start(pairs: Path) -> None:
    made = partial(batches, ShardSet.open(pairs), crops=build_crops(small(pairs, views=VIEWS)))
    whole = made(0, 4)
    assert all(map(torch.equal, made(3, 4)[0].crops, whole[3].crops))
    halves = [made(0, 4, rank, 2) for rank in (0, 1)]
    for step, batch in enumerate(whole):
        joined = map(torch.cat, zip(*(half[step].crops for half in halves), strict=True))
        assert all(map(torch.equal, joined, batch.crops))


def test_what_is_no_pair_is_replaced(pairs: Path) -> None:
    data, height, width = samples(pairs)
    (first, *_), numbers = members_of(data[0].data).values(), np.arange(len(data))
    data[1] = np.frombuffer(member("k.0.jpg", first), np.uint8)
    data[2] = np.frombuffer(jpeg(Image.new("RGB", (40, 40))), np.uint8)
    maker = Maker(build_crops(small(pairs, views=VIEWS)), seed=5, max_batch=8)
    with pytest.raises(BadImages) as caught:
        maker(data, numbers * 0, numbers, height, width)
    maker.close()
    assert caught.value.indices == [1, 2]
    assert caught.value.reasons[0] == "no picture 1.jpg: its members are 0.jpg"
    assert caught.value.reasons[1].startswith("its members cannot be told apart")


def test_an_evaluation_sees_the_first(pairs: Path) -> None:
    data, *_ = samples(pairs)
    assert bytes(still(data[0])) == members_of(data[0].data)["0.jpg"]


def test_what_cannot_be_is_said_in_a_line(pairs: Path, tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "pictures", [8])
    for root, views, said in (
        (pictures, VIEWS, "holds images; what is asked for takes pairs of pictures"),
        (pairs, VIEWS | {"pictures": 1}, "holds pairs of pictures; what is asked for takes images"),
    ):
        config = small(root, views=views)
        with pytest.raises(UserError, match=said):
            open_data(config.data, 8, 0, config.views.media)
    one = {"count": 1, "size": 24, "scale": [0.3, 1]}
    for views, said in (
        ({"crops": [one]}, "needs 2 crops or more"),
        ({"crops": [one | {"layout": "quarter_turns"}]}, "needs crops of layout independent"),
        ({"crops": [one | {"count": 2}], "sound": {"seconds": 1}}, "goes with no sound"),
    ):
        with pytest.raises(UserError, match=said):
            small(pairs, views=views | {"pictures": 2})
    with pytest.raises(UserError, match="has those of pairs"):
        seer_pipe.views(small(pairs, views=VIEWS))


def test_any_objective_of_several_crops_trains_on_them(pairs: Path, tmp_path: Path) -> None:
    config = small(pairs, views=VIEWS, objective={"name": "simclr", "head": {"hidden": [16], "dim": 8}},
                   train={"images": 16})  # fmt: skip
    assert train(config, tmp_path / "run", say=lambda _: None)
    assert all(np.isfinite(list(losses(tmp_path / "run").values())))


def test_both_pictures_are_drawn_with_their_crops(pairs: Path, tmp_path: Path) -> None:
    config = small(pairs, views=VIEWS)
    draw_crops(config, tmp_path / "crops.png", images=2, step=0)
    shards, plan = open_data(config.data, config.train.batch, config.seed)
    loader = Loader(shards, plan, np.arange(8), build_crops(config), seed=config.seed)
    (batch,) = loader.batches(0, 1)
    loader.close()
    sheet = np.asarray(Image.open(io.BytesIO((tmp_path / "crops.png").read_bytes())))
    left = 3 * GAP + SIDE + WIDTH
    assert np.array_equal(sheet[HEADER : HEADER + 24, left : left + 24], np.asarray(as_seen(batch.crops[1][0])))
    halves = (
        sheet[HEADER : HEADER + 40, GAP : GAP + SIDE // 2],
        sheet[HEADER : HEADER + 40, GAP + SIDE // 2 : GAP + SIDE],
    )
    assert all((half != 255).any() for half in halves)
