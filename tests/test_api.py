"""What the commands do, as functions: typed results, and the same values."""

import io
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import seer_pipe
from seer_pipe.data.dali import Augmenter, BadImages
from seer_pipe.data.views import draw
from seer_pipe.errors import UserError
from seer_pipe.evaluate.knn import evaluate_knn
from seer_pipe.evaluate.release import export_run
from seer_pipe.recipes import load_recipe
from seer_pipe.train.build import build_crops
from tests.train.helpers import make_pictures, small


def test_importing_is_light() -> None:
    """Whatever is there for programs is loaded when it is asked for, and listed before."""
    code = "import sys, seer_pipe; print(sorted(dir(seer_pipe)), sorted(sys.modules))"
    names, modules = subprocess.check_output([sys.executable, "-c", code], text=True).split("] [")
    assert {"stream", "pretrain", "views", "load_backbone", "evaluate_knn"} <= set(names.replace("'", "").split(", "))
    assert "'torch'" not in modules
    assert "'numpy'" not in modules
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        seer_pipe.nothing  # noqa: B018


def test_a_run_its_backbone_and_its_worth(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "pictures", [20])
    said: list[str] = []
    config = small(pictures, train={"images": 16})
    done = seer_pipe.pretrain(config, tmp_path / "run", say=said.append)
    assert (done.folder, done.finished, done.metrics["images"]) == (tmp_path / "run", True, 16)
    assert said
    other = small(pictures, optimizer={"lr": 2.0}, train={"images": 16})
    with pytest.raises(UserError, match="lr"):
        seer_pipe.pretrain(other, tmp_path / "run", say=said.append)
    export_run(tmp_path / "run", tmp_path / "export", "torchvision")
    images = torch.rand(2, 3, 64, 64)
    with torch.no_grad():
        of_run, of_export = (seer_pipe.load_backbone(tmp_path / name)(images) for name in ("run", "export"))
    assert of_run.shape == (2, 368)
    assert torch.equal(of_run, of_export)
    labels = tmp_path / "labels.csv"
    labels.write_text("key,label\n" + "".join(f"{number:06d},{number % 2}\n" for number in range(20)))
    found = seer_pipe.evaluate_knn(tmp_path / "run", str(pictures), str(labels), k=3)
    assert found is not None
    plain = evaluate_knn(tmp_path / "run", str(pictures), str(labels), None, k=3, temperature=0.07, untrained=False)
    assert plain is not None
    assert {"accuracy": found.accuracy, "images": found.images, "classes": found.classes, "left_out": found.left_out,
            "evaluation": found.evaluation, **found.details} == plain  # fmt: skip
    assert (found.images, found.classes, found.details["k"]) == (20, 2, 3)


@pytest.fixture(scope="module")
def pictures() -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (60 + 9 * i, 90 - 7 * i, 3), dtype=np.uint8) for i in range(5)]


def png(picture: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "PNG")
    return file.getvalue()


def test_views_of_bytes_and_of_tensors_are_those_of_training(pictures: list[np.ndarray]) -> None:
    config = load_recipe(Path("quickstart"))
    make, numbers = seer_pipe.views("quickstart", seed=3), [7, 1, 100, 8, 2]
    encoded = make([png(picture) for picture in pictures], numbers, epoch=2)
    tensors = make([torch.from_numpy(picture).permute(2, 0, 1) for picture in pictures], torch.tensor(numbers), epoch=2)
    specs = build_crops(config)
    drawn = draw(3, 2, np.array(numbers), *np.array([p.shape[:2] for p in pictures]).T, specs)
    expected = Augmenter(specs, max_batch=8)([png(picture) for picture in pictures], drawn)
    assert [crop.shape for crop in encoded] == [(5, 3, spec.size, spec.size) for spec in specs for _ in spec.sizes]
    for one, other, reference in zip(encoded, tensors, expected, strict=True):
        assert torch.equal(one, reference)
        assert torch.equal(other, reference)
    alone = make([png(pictures[3])], [8], epoch=2)
    assert all(torch.equal(one[0], all_[3]) for one, all_ in zip(alone, encoded, strict=True))
    make.close()


def test_views_say_what_they_cannot_use(pictures: list[np.ndarray]) -> None:
    make = seer_pipe.views("quickstart")
    good = png(pictures[0])
    with pytest.raises(BadImages) as bad:
        make([good, b"no image", good[: len(good) // 2]], [0, 1, 2])
    assert bad.value.indices == [1]
    with pytest.raises(BadImages) as bad:
        make([good, good[: len(good) // 2]], [0, 1])
    assert bad.value.indices == [1]
    with pytest.raises(UserError, match=r"\[3, H, W\] of uint8"):
        make([torch.zeros(3, 8, 8)], [0])
    with pytest.raises(UserError, match="2 images and the numbers of 1 samples"):
        make([good, good], [0])
    with pytest.raises(UserError, match="bytes, or tensors"):
        make([], [])
    make.close()
