"""The picture that our evaluations see, from what an export says to each library."""

import json
import math
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from seer_pipe.evaluate.features import Images
from seer_pipe.evaluate.pictures import FilePictures
from seer_pipe.export import Preprocessing
from tests.export.test_export import code_of, export

SIZES = [32, 33, 45, 64, 96, 127, 160, 224, 299, 333, 384, 448, 511, 512]
SHAPES = [(150, 120), (120, 173), (131, 131)]  # height, width


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Noise, in which a shift by one pixel is as far off as another picture, without loss."""
    folder, rng = tmp_path_factory.mktemp("noise"), np.random.default_rng(0)
    for number, shape in enumerate(SHAPES):
        Image.fromarray(rng.integers(0, 256, (*shape, 3), np.uint8)).save(folder / f"{number}.png")
    return sorted(folder.iterdir())


def by_the_card(code: str, file: Path) -> torch.Tensor:
    scope: dict = {}
    exec(code.replace('"picture.jpg"', repr(str(file))), scope)
    return scope["images"][0]


def levels(one: torch.Tensor, other: torch.Tensor) -> float:
    """The largest difference of two normalised pictures, in levels of 255."""
    return float(((one - other).abs() * torch.tensor(Preprocessing().std)[:, None, None]).max() * 255)


def test_timms_arithmetic_comes_to_our_size_at_every_size() -> None:
    for size in range(32, 513):
        pre = Preprocessing(size)
        assert math.floor(size / pre.crop) == pre.resize == round(size * 8 / 7)


@pytest.mark.parametrize("size", SIZES)
def test_the_cards_code_gives_the_picture_that_evaluations_see(torchvision, files, size) -> None:
    """Up to the rounding of two implementations: two levels at worst."""
    with closing(Images(FilePictures(files, "noise"), size)) as images:
        ((_, ours),) = images.batches()
    for picture, file in zip(ours, files, strict=True):
        theirs = by_the_card(Preprocessing(size).code(), file)
        assert levels(picture, theirs) <= 2.01
        assert (picture - theirs).abs().mean() < 0.01


@pytest.mark.parametrize("size", SIZES)
def test_timm_gives_the_cards_picture_to_the_last_bit(torchvision, files, size) -> None:
    data = pytest.importorskip("timm").data
    pre = Preprocessing(size)
    transform = data.create_transform(**data.resolve_data_config({}, pretrained_cfg=pre.timm()))
    for file in files:
        assert torch.equal(transform(Image.open(file)), by_the_card(pre.code(), file))


@pytest.mark.parametrize("size", SIZES)
def test_transformers_gives_the_cards_picture(torchvision, files, size, tmp_path) -> None:
    """With Pillow to the last level, with torchvision's kernels to one; where it halves an odd margin differently, one
    pixel further."""
    processors = pytest.importorskip("transformers").AutoImageProcessor
    pre = Preprocessing(size)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(pre.transformers()))
    for backend, tolerance in (("pil", 0.01), ("torchvision", 1.01)):
        processor = processors.from_pretrained(tmp_path, backend=backend)
        for file, shape in zip(files, SHAPES, strict=True):
            theirs = processor(Image.open(file), return_tensors="pt").pixel_values[0]
            margins = [pre.resize * side // min(shape) - size for side in shape]
            down, right = (round(margin / 2) - margin // 2 for margin in margins)
            assert theirs.shape == (3, size, size)
            ours = by_the_card(pre.code(), file)[:, : size - down, : size - right]
            assert levels(theirs[:, down:, right:], ours) <= tolerance


@pytest.mark.parametrize("format", ["timm", "huggingface"])
def test_the_cards_lines_for_the_library_make_its_transformation(torchvision, files, tmp_path, monkeypatch, format):
    pytest.importorskip("transformers" if format == "huggingface" else "timm")
    export(tmp_path / "out", "resnet18", format)
    monkeypatch.chdir(tmp_path / "out")
    ours, theirs = code_of(tmp_path / "out", "Preprocessing")
    scope: dict = {}
    exec(theirs, scope)
    image = Image.open(files[0])
    picture = scope["transform"](image) if format == "timm" else scope["transform"](image, return_tensors="pt")
    picture = picture if format == "timm" else picture.pixel_values[0]
    assert levels(picture, by_the_card(ours, files[0])) <= 1.01
