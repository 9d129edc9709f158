"""What `show crops` draws is what a training sees."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from seer_pipe import config as settings
from seer_pipe.cli import app
from seer_pipe.data.loader import Loader
from seer_pipe.data.pixels import MEAN, STD
from seer_pipe.data.sources import open_data
from seer_pipe.errors import UserError
from seer_pipe.report.crops import GAP, HEADER, SIDE, WIDTH, draw_crops
from seer_pipe.report.thumbnails import as_heard
from seer_pipe.train.build import build_crops
from tests.media import make_pairs
from tests.train.helpers import make_pictures, small


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), [20])


def test_the_crops_are_the_trainings(pictures: Path, tmp_path: Path) -> None:
    config = small(pictures)
    settings.save(config, settings.derive(config, 20), tmp_path / "recipe.yaml")
    words = ["show", "crops", str(tmp_path / "recipe.yaml"), "--out", str(tmp_path / "new/crops.png"), "--images", "3",
             "--step", "2"]  # fmt: skip
    result = CliRunner().invoke(app, words)
    assert (result.exit_code, result.stdout.strip()) == (0, str(tmp_path / "new/crops.png"))
    sheet = np.asarray(Image.open(tmp_path / "new/crops.png"))

    shards, plan = open_data(config.data, config.train.batch, config.seed)
    loader = Loader(shards, plan, np.arange(8), build_crops(config), seed=config.seed)
    (batch,) = loader.batches(2, 3)
    loader.close()
    mean, std = (torch.tensor(values).view(3, 1, 1) for values in (MEAN, STD))
    first = (batch.crops[0][0] * std + mean).round().clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy()
    left = 2 * GAP + SIDE
    assert np.array_equal(sheet[HEADER : HEADER + 24, left : left + 24], first)


def test_images_that_cannot_be_used_are_left_out(tmp_path: Path) -> None:
    data = make_pictures(tmp_path / "set", [8])
    with (data / "00000.tar").open("r+b") as tar:
        tar.write(bytes(3000))
    draw_crops(small(data), tmp_path / "some.png", images=8, step=0)
    assert Image.open(tmp_path / "some.png").height > HEADER + SIDE
    (data / "00000.tar").write_bytes(bytes(1 << 20))
    with pytest.raises(UserError, match="none of the 8 images of step 0 can be used"):
        draw_crops(small(data), tmp_path / "none.png", images=8, step=0)


def test_what_is_heard_is_drawn_beside_the_crops(tmp_path: Path) -> None:
    views = {"crops": [{"count": 1, "size": 24, "scale": [0.3, 1]}],
             "sound": {"spectrum": "log_mel", "bands": 16, "seconds": 0.3}}  # fmt: skip
    config = small(make_pairs(tmp_path / "set", 8), views=views, objective={"name": "image_audio"})
    draw_crops(config, tmp_path / "crops.png", images=3, step=2)
    shards, plan = open_data(config.data, config.train.batch, config.seed)
    loader = Loader(shards, plan, np.arange(8), build_crops(config), config.views.sound, seed=config.seed)
    (batch,) = loader.batches(2, 3)
    loader.close()
    heard = np.asarray(as_heard(batch.crops[1][0]))
    assert heard.shape == (16, 30, 3)  # low tones at the bottom
    left = 3 * GAP + SIDE + WIDTH
    sheet = np.asarray(Image.open(tmp_path / "crops.png"))
    assert np.array_equal(sheet[HEADER : HEADER + 16, left : left + 30], heard)
