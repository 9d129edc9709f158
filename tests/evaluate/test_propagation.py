"""Masks carried on through drawn videos in DAVIS's layout: how they are judged, by which cells, and what is refused."""

import json
import math
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from torch import Tensor
from typer.testing import CliRunner

from seer_pipe.cli import app
from seer_pipe.errors import UserError
from seer_pipe.evaluate.davis import open_davis
from seer_pipe.evaluate.masks import contour, contour_accuracy, dilated, region_similarity
from seer_pipe.evaluate.propagation import Carrying, carry, evaluate_propagation
from tests.davis import PALETTE, write_davis

HEIGHT, WIDTH, RADIUS, COUNT = 64, 96, 14, 8
Masks = npt.NDArray[np.uint8]


def frame(place: tuple[int, int], stripe: int) -> tuple[npt.NDArray[np.uint8], Masks]:
    """A red disc and a green bar before a ground of noise, and the mask that numbers them."""
    pixels = np.random.default_rng(0).integers(100, 156, (HEIGHT, WIDTH, 3), dtype=np.uint8)
    rows, columns = np.mgrid[:HEIGHT, :WIDTH]
    mask = np.zeros((HEIGHT, WIDTH), np.uint8)
    mask[:, stripe : stripe + 16] = 2
    mask[(rows - place[0]) ** 2 + (columns - place[1]) ** 2 <= RADIUS**2] = 1
    pixels[mask == 1], pixels[mask == 2] = (220, 30, 30), (20, 200, 40)
    return pixels, mask


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sequence in which both objects move, and one of a bar that stands still."""
    root = tmp_path_factory.mktemp("davis")
    write_davis(root, "moving", [frame((20 + 3 * n, 24 + 6 * n), 76 - 8 * n) for n in range(COUNT)])
    still = frame((-40, -40), 32)
    still[1][still[1] == 2] = 1
    return write_davis(root, "still", [still] * COUNT)


def masks(root: Path, name: str) -> list[Masks]:
    return [np.array(Image.open(file)) for file in sorted((root / name).glob("*.png"))]


small = st.integers(0, 2**63).map(lambda seed: np.random.default_rng(seed))


@settings(max_examples=50, deadline=None)
@given(small, st.integers(1, 12), st.integers(1, 12), st.integers(0, 6))
def test_contours_and_their_surroundings_are_as_defined(
    dice: np.random.Generator, height: int, width: int, radius: int
) -> None:
    mask = dice.random((height, width)) < dice.random()
    edge, around = contour(mask), dilated(mask, radius)
    for y in range(height):
        for x in range(width):
            below, right = min(y + 1, height - 1), min(x + 1, width - 1)
            others = {bool(mask[y, right]), bool(mask[below, x]), bool(mask[below, right])}
            assert edge[y, x] == (others != {bool(mask[y, x])})
            near = any(math.hypot(y - v, x - u) <= radius for v, u in zip(*np.nonzero(mask), strict=True))
            assert around[y, x] == near


def square(top: int, left: int, side: int = 40) -> npt.NDArray[np.bool_]:
    mask = np.zeros((120, 160), bool)  # of a diagonal of 200 pixels: two within 0.008 of it
    mask[top : top + side, left : left + side] = True
    return mask


def test_scores_are_those_counted_by_hand() -> None:
    none = np.zeros((120, 160), bool)
    assert region_similarity(square(20, 20), square(20, 20)) == contour_accuracy(square(20, 20), square(20, 20)) == 1
    assert region_similarity(square(20, 20), square(20, 40)) == 800 / 2400
    assert contour_accuracy(square(20, 20), square(22, 20)) == 1  # within the tolerance
    assert contour_accuracy(square(20, 20), square(20, 100)) == 0
    assert (region_similarity(none, none), contour_accuracy(none, none)) == (1, 1)
    assert (region_similarity(square(0, 0), none), contour_accuracy(square(0, 0), none)) == (0, 0)
    # A contour is a ring of side 41. Eight columns on, 35 pixels of its upper and of its lower side match, and of the
    # side that lies within the other ring the two pixels next to each of those.
    assert contour(square(20, 20)).sum() == 160
    assert contour_accuracy(square(20, 20), square(20, 28)) == pytest.approx((2 * 35 + 2 * 2) / 160)


def reference(maps: list[Tensor], first: Tensor, carrying: Carrying) -> list[Tensor]:
    """Cell by cell, with plain sorting."""
    _, height, width = maps[0].shape
    cells = [(y, x) for y in range(height) for x in range(width)]
    known = [F.adaptive_avg_pool2d(first, (height, width))]
    for at, now in enumerate(maps[1:], 1):
        found = torch.zeros_like(known[0])
        for y, x in cells:
            near = []
            for before in sorted({0, *range(max(0, at - carrying.context), at)}):
                for v, u in cells:
                    if before == 0 or math.hypot(y - v, x - u) < carrying.radius:
                        cosine = F.cosine_similarity(now[:, y, x], maps[before][:, v, u], dim=0)
                        near.append((float(cosine), before, v, u))
            near = sorted(near, reverse=True)[: carrying.k]
            weights = [math.exp(cosine / carrying.temperature) for cosine, *_ in near]
            for weight, (_, before, v, u) in zip(weights, near, strict=True):
                found[:, y, x] += weight / sum(weights) * known[before][:, v, u]
        known.append(found)
    return known[1:]


@pytest.mark.parametrize("carrying", [Carrying(2, 3, 2.0, 0.3), Carrying(0, 4, 2.0, 0.3), Carrying(5, 500, 1.5, 1.0)])
def test_labels_come_from_the_cells_that_are_most_alike(carrying: Carrying, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("seer_pipe.evaluate.propagation.AT_ONCE", 100)  # in pieces
    dice = torch.Generator().manual_seed(0)
    maps = [torch.randn(4, 3, 5, generator=dice, dtype=torch.float64) for _ in range(5)]
    first = torch.rand(3, 12, 20, generator=dice, dtype=torch.float64)
    found = list(carry(maps, first, carrying))
    assert len(found) == 4
    for one, expected in zip(found, reference(maps, first, carrying), strict=True):
        torch.testing.assert_close(one, expected, rtol=1e-9, atol=1e-12)


def test_of_what_moves_features_know_more_than_the_first_mask(backbone: Path, davis: Path, tmp_path: Path) -> None:
    """And of what stands still all: its borders are those of cells. Of an untrained trunk, through the command."""
    words = ["eval", "propagation", backbone, "--data", davis, "--stage", 1, "--k", 1, "--out", tmp_path / "masks"]
    ran = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    assert ran.exit_code == 0, ran.output
    result = json.loads(ran.stdout)
    truth, found = masks(davis / "Annotations/480p", "moving"), masks(tmp_path / "masks", "moving")
    assert (found[0] == truth[0]).all()
    assert Image.open(tmp_path / "masks/moving/00003.png").getpalette()[:9] == PALETTE[:9]

    def j(guess: list[Masks]) -> float:
        pairs = [(guess[n] == one, truth[n] == one) for n in range(1, COUNT - 1) for one in (1, 2)]
        return float(np.mean([region_similarity(*pair) for pair in pairs]))

    scores = result["sequences"]["moving"]
    assert scores["j"] == pytest.approx(j(found))
    assert scores["j"] > j([truth[0]] * COUNT) + 0.3
    assert result["sequences"]["still"] == {"j_and_f": 1.0, "j": 1.0, "f": 1.0}
    assert result["j"] == pytest.approx((2 * scores["j"] + 1) / 3)  # over objects
    assert result["j_and_f"] == pytest.approx((result["j"] + result["f"]) / 2)
    assert json.loads((backbone / "evaluation/propagation-stage1-7.json").read_text()) == result


def test_stages_are_compared(backbone: Path, davis: Path) -> None:
    words = ["eval", "propagation", backbone, "--data", davis, "--stage", "all", "--context", 1]
    ran = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    head, *rows = ran.stdout.splitlines()
    assert head.split() == ["stage", "J&F", "J", "F"]
    assert [row.split()[0] for row in rows[:4]] == ["1", "2", "3", "4"]


def test_wrong_layouts_are_named_in_a_line(backbone: Path, davis: Path, tmp_path: Path) -> None:
    def refused(said: str, change: str = "", data: bytes | None = None, **options: object) -> None:
        root = tmp_path / said.replace("/", " ")[:40]
        write_davis(root, "one", [frame((20, 20), 60)] * 3)
        if data is not None:
            (root / change).write_bytes(data)
        elif change:
            (root / change).unlink()
        with pytest.raises(UserError, match=said):
            evaluate_propagation(backbone, root, Carrying(), **options)  # type: ignore[arg-type]

    mask, listed = "Annotations/480p/one/00001.png", "ImageSets/2017/val.txt"
    refused("val.txt: No such file .*: --data is to be the folder of DAVIS 2017", listed)
    refused("val.txt: names no sequence", listed, b"\n")
    refused("JPEGImages/480p/two: 0 frames", listed, b"two\n")
    refused("one: 2 frames .* 3 or more are wanted", "JPEGImages/480p/one/00002.jpg")
    refused("00001.png: no such file, and 0 more are missing", mask)
    refused("00001.png: cannot identify image file", mask, b"no picture")
    refused("00000.jpg: cannot identify image file|00000.png: cannot identify", "JPEGImages/480p/one/00000.jpg", b"x")
    refused("--stage 9: regnety_200mf has the stages 1 to 4", stage="9")
    refused("--out takes the masks of one stage", stage="all", out=tmp_path / "out")

    def image(shape: tuple[int, ...], fill: int) -> bytes:
        file = tmp_path / "image.png"
        Image.fromarray(np.full(shape, fill, np.uint8)).save(file)
        return file.read_bytes()

    refused("pixels are RGB, and no numbers", "Annotations/480p/one/00000.png", image((HEIGHT, WIDTH, 3), 1))
    refused("00000.png: 8x9 pixels, its frame 96x64", "Annotations/480p/one/00000.png", image((9, 8), 1))
    refused("00000.png: names no object", "Annotations/480p/one/00000.png", image((HEIGHT, WIDTH), 255))
    assert [one.name for one in open_davis(davis)] == ["moving", "still"]
