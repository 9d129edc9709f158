"""`seer-pipe data inspect` and `seer-pipe bench data`."""

import json
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from seer_pipe import config as settings
from seer_pipe.cli import app
from seer_pipe.data.sources import open_data
from seer_pipe.errors import UserError
from tests.train.helpers import make_pictures, small


@pytest.fixture(scope="module")
def recipe(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("bench")
    sources = [{"path": str(make_pictures(root / name, [20])), "weight": 1} for name in "ab"]
    config = small(root, data={"path": None, "sources": sources})
    settings.save(config, settings.derive(config, 40), root / "config.yaml")
    return root / "config.yaml"


def run(*arguments: object) -> str:
    result = CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)
    assert result.exit_code == 0
    return result.stdout


def test_inspect_shows_what_the_plan_says(recipe: Path) -> None:
    config = settings.load(recipe)
    _, plan = open_data(config.data, 8, config.seed)
    found = json.loads(run("data", "inspect", recipe, "--step", 7, "--rank", 1, "--world", 2, "--json"))
    assert [image["sample"] for image in found["images"]] == plan.locate(7, np.arange(4, 8)).sample.tolist()
    about = [(s["images"], s["images_per_batch"], s["epoch"], s["step_of_epoch"]) for s in found["sources"]]
    assert about == [(20, 4, 1, 2)] * 2
    lines = run("data", "inspect", recipe, "--step", 7).splitlines()
    assert lines[0].startswith(f"{recipe.parent}/a: 20 images in 1 shards")
    assert len([line for line in lines if ".tar, " in line]) == 8
    with pytest.raises(UserError, match="use 2 or 4 ranks"):
        run("data", "inspect", recipe, "--world", 3)


def test_bench_says_which_part_limits(recipe: Path) -> None:
    told = json.loads(run("bench", "data", recipe, "--seconds", 0, "--json"))
    assert told["images_a_step"] == 8
    assert all(told[name] > 0 for name in ("stream_images_per_s", "crops_images_per_s", "together_images_per_s"))
    slower = "reading" if told["stream_images_per_s"] < told["crops_images_per_s"] else "decoding and cropping"
    assert told["limit"] == slower
