"""The drawn web is what it says, and the whole way leads to the end, on it and on a person's own pictures."""

import csv
import io
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from seer_pipe import config as settings
from seer_pipe.errors import UserError
from seer_pipe.quickstart.draw import KINDS, picture
from seer_pipe.quickstart.walk import MARK, make_room
from seer_pipe.quickstart.web import draw_web, serve, write_lists
from seer_pipe.shards import ShardSet
from tests.command import seer_pipe
from tests.train.helpers import small


def test_the_same_seed_draws_the_same_web() -> None:
    first, second = draw_web(3, pictures_per_kind=4), draw_web(3, pictures_per_kind=4)
    assert first.pages == second.pages
    assert first.kinds == second.kinds
    assert draw_web(4, pictures_per_kind=4).pages != first.pages


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_kind_varies_in_size_and_colour(kind: str) -> None:
    drawn = [picture(kind, seed) for seed in range(12)]
    assert all(96 <= side <= 288 for image in drawn for side in image.size)
    assert len({image.size for image in drawn}) > 6
    means = np.array([np.asarray(image).reshape(-1, 3).mean(axis=0) for image in drawn])
    assert means.std(axis=0).min() > 20  # levels of 255


def test_the_web_has_everything_that_goes_wrong() -> None:
    web = draw_web(0, pictures_per_kind=25)
    statuses = {answer.status for answer in web.pages.values()}
    assert statuses == {200, 404}
    formats = set()
    for path in web.kinds:
        with Image.open(io.BytesIO(web.pages[path].body)) as image:
            formats.add(image.format)
    assert formats == {"JPEG", "PNG", "WEBP", "GIF"}
    announced = [path for path in web.kinds if path.endswith(".jpg") and web.pages[path].body[:4] == b"\x89PNG"]
    assert announced
    for kind in ("again", "cut", "gone", "login", "pixel"):
        assert sum(path.startswith(f"/{kind}/") for path in web.pages) == 8


def test_lists_do_not_tell_the_kinds(tmp_path: Path) -> None:
    web = draw_web(0, pictures_per_kind=2)
    with serve(web) as address:
        write_lists(web, address, tmp_path / "urls.txt", tmp_path / "kinds.csv")
    urls = (tmp_path / "urls.txt").read_text().splitlines()
    assert not any(kind in url for kind in KINDS for url in urls)
    with (tmp_path / "kinds.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["label"] for row in rows} == set(KINDS)
    assert {row["source"] for row in rows} <= set(urls)


def recipe(folder: Path) -> Path:
    """A recipe of seconds instead of minutes."""
    config = small(folder, train={"images": None, "epochs": 3, "checkpoint_every": 2, "log_every": 1})
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(config.model_dump(mode="json")))
    assert settings.load(path) == config
    return path


def quickstart(*arguments: object) -> str:
    done = seer_pipe("quickstart", *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_folder_of_its_own_is_replaced_and_another_left_alone(tmp_path: Path) -> None:
    make_room(tmp_path / "out")
    (tmp_path / "out/run").mkdir()
    make_room(tmp_path / "out")
    assert [path.name for path in (tmp_path / "out").iterdir()] == [MARK]
    (tmp_path / "other").mkdir()
    (tmp_path / "other/thesis.tex").touch()
    with pytest.raises(UserError, match="not a quickstart's folder, so it is left alone"):
        make_room(tmp_path / "other")
    assert [path.name for path in (tmp_path / "other").iterdir()] == ["thesis.tex"]


@pytest.mark.slow
def test_the_whole_way_on_own_pictures(tmp_path: Path) -> None:
    pictures, out = tmp_path / "pictures", tmp_path / "out"
    pictures.mkdir()
    for number in range(30):
        picture(sorted(KINDS)[number % len(KINDS)], number).save(pictures / f"{number}.png")
    (pictures / "notes.jpg").write_text("not a picture")
    said = quickstart("--images", pictures, "--out", out, "--config", recipe(tmp_path))
    assert "killed at step" in said
    assert "resumed:" in said
    assert len(ShardSet.open(out / "shards")) == 30
    assert (out / "backbone/model.safetensors").exists()
    with Image.open(said.strip().splitlines()[-1].split()[-1]) as image:
        assert image.width > 500


@pytest.mark.slow
def test_the_whole_way_on_the_drawn_web(tmp_path: Path) -> None:
    said = quickstart("--out", tmp_path / "out", "--config", recipe(tmp_path))
    assert "killed at step" in said
    assert "kNN accuracy over 600 images" in said
    accuracies = [line.split()[-1] for line in said.splitlines() if line.strip().startswith(("trained", "reloaded"))]
    assert len(accuracies) == 2
    assert accuracies[0] == accuracies[1]
