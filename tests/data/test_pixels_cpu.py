"""The kernel for CPUs against the definition in float64, step by step and as a whole."""

import itertools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seer_pipe.config import Augment
from seer_pipe.data import pixels_cpu
from seer_pipe.data.pixels import pack
from seer_pipe.data.views import ORDERS, Crops, CropSpec, centre, draw
from tests.data import reference

LAYOUTS = [torch.contiguous_format, torch.channels_last]
DTYPES = [torch.float32, torch.float16, torch.bfloat16]
LEVELS = reference.STD[:, None, None]  # of a normalised crop


def make(
    pictures: Sequence[np.ndarray], views: Sequence[Crops], sizes: Sequence[int],
    layout: torch.memory_format = torch.contiguous_format, dtype: torch.dtype = torch.float32,
) -> list[torch.Tensor]:  # fmt: skip
    height, width = np.array([picture.shape[:2] for picture in pictures]).T
    table = pack(views, height, width, np.array([picture.ctypes.data for picture in pictures], np.uint64))
    out = [torch.full((len(pictures), 3, size, size), torch.nan, dtype=dtype).contiguous(memory_format=layout)
           for size in sizes]  # fmt: skip
    pixels_cpu.kernel()(
        table, np.array([x.data_ptr() for x in out]), np.array(sizes), np.zeros(1, np.int64),
        layout == torch.channels_last, pixels_cpu.KINDS[dtype],
    )  # fmt: skip
    return out


def picture(seed: int, height: int, width: int) -> np.ndarray:
    """Noise, and a third of it in pure colours, greys and extremes."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 256, (height, width, 3), dtype=np.uint8)
    image[: height // 3] = rng.choice(np.array([0, 127, 128, 255], np.uint8), (height // 3, width, 3))
    return image


def one(height: int, width: int, size: int, **changed: object) -> Crops:
    """The whole picture, but for what is ``changed``."""
    crop = replace(centre(np.array([1]), np.array([1]), size, size), box=np.array([[0, 0, height, width]], np.int32))
    return replace(crop, **{name: np.array([value], getattr(crop, name).dtype) for name, value in changed.items()})


def differences(image: np.ndarray, crop: Crops, size: int) -> np.ndarray:
    (x,) = make([image], [crop], [size])
    return np.abs(x[0].numpy() - reference.make(image, crop, 0, size)) * LEVELS


STEPS = {
    "nothing": {},
    "flip": {"flip": True},
    "brightness": {"factors": (1.7, 1, 1, 0)},
    "contrast": {"factors": (1, 0.3, 1, 0)},
    "saturation": {"factors": (1, 1, 1.8, 0)},
    "hue": {"factors": (1, 1, 1, -0.17)},
    "half a turn of hue": {"factors": (1, 1, 1, 0.5)},
    "grey": {"grey": 1},
    "red alone": {"grey": 2},
    "green alone": {"grey": 3},
    "blue alone": {"grey": 4},
    "weak blur": {"sigma": 0.1},
    "blur": {"sigma": 1.37},
    "strong blur": {"sigma": 2.0},
    "solarise": {"solarise": True},
    "darkest": {"factors": (0, 0, 0, 0)},
}


@pytest.mark.parametrize("size", [7, 8, 33, 64])
@pytest.mark.parametrize("step", STEPS)
def test_each_step_alone(step: str, size: int) -> None:
    """On crops as large as the picture, where the cut is exact."""
    assert differences(picture(size, size, size), one(size, size, size, **STEPS[step]), size).max() < 2e-3


@pytest.mark.parametrize("order", ORDERS.tolist())
def test_each_order_of_the_jitter(order: list[int]) -> None:
    crop = one(24, 24, 24, factors=(1.4, 0.6, 1.6, 0.11), order=order, grey=False, sigma=0.8, solarise=True)
    assert differences(picture(1, 24, 24), crop, 24).max() < 0.02


sides = st.integers(1, 150)


@settings(max_examples=150)
@given(st.integers(0, 99), sides, sides, st.integers(1, 70), st.booleans(), st.booleans(), st.data())
def test_the_cut_of_any_box(
    seed: int, height: int, width: int, size: int, flip: bool, between: bool, data: st.DataObject
) -> None:
    """Of whole pixels and between them, down to one pixel, at the picture's edges; up and down in size."""
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    h, w = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    box = np.array([[top, left, h, w]], np.int32)
    if between:
        box = box + data.draw(st.floats(0, 0.99)) * np.array([[1, 1, -1, -1]])
    different = differences(picture(seed, height, width), replace(one(1, 1, size, flip=flip), box=box), size)
    assert different.max() < 1.01  # float32 may round to the next level
    assert (different > 0.01).mean() <= max(0.01, 3 / different.size)


def test_a_very_large_picture() -> None:
    image = picture(5, 3000, 41)
    assert (differences(image, one(3000, 41, 64), 64) > 0.01).mean() < 1e-3


STRONG = Augment(jitter_p=0.9, grey_p=0.3, channel_p=0.3, blur_p=0.7, solarise_p=0.4)


@settings(max_examples=60)
@given(st.integers(0, 2**40), st.integers(1, 300), st.integers(1, 300), st.integers(8, 50))
def test_whole_recipes(seed: int, height: int, width: int, size: int) -> None:
    pictures = [picture(i, height, width) for i in range(2)]
    specs = [CropSpec(2, size, (0.05, 1.0), STRONG)]
    n = np.arange(2)
    views = draw(seed, 0, n, np.full(2, height), np.full(2, width), specs)
    for view, x in zip(views, make(pictures, views, [size, size]), strict=True):
        for row in range(2):
            different = np.abs(x[row].numpy() - reference.make(pictures[row], view, row, size)) * LEVELS
            assert np.isfinite(different).all()
            assert different.mean() < 0.05
            assert (different > 0.05).mean() < 0.05  # where a level went the other way, and what blur made of it


def batch(n: int) -> tuple[list[np.ndarray], list[Crops], list[int]]:
    height, width = np.arange(n) * 13 + 30, np.arange(n)[::-1] * 17 + 20
    specs = [CropSpec(2, 40, (0.14, 1.0), STRONG), CropSpec(2, 17, (0.05, 0.14), STRONG)]
    views = draw(3, 1, np.arange(n), height, width, specs)
    return [picture(i, h, w) for i, (h, w) in enumerate(zip(height, width, strict=True))], views, [40, 40, 17, 17]


@pytest.mark.parametrize(("layout", "dtype"), list(itertools.product(LAYOUTS, DTYPES)))
def test_what_is_written_is_the_same_in_every_layout_and_type(layout: torch.memory_format, dtype: torch.dtype) -> None:
    pictures, views, sizes = batch(9)
    plain = make(pictures, views, sizes)
    for x, y in zip(make(pictures, views, sizes, layout, dtype), plain, strict=True):
        assert x.is_contiguous(memory_format=layout)
        assert torch.equal(x, y.to(dtype))


def test_a_crop_does_not_depend_on_its_batch() -> None:
    pictures, views, sizes = batch(9)
    whole = make(pictures, views, sizes)
    rows = [5, 0, 7, 2, 2]
    some = make([pictures[i] for i in rows], [view.take(rows) for view in views], sizes)
    assert all(torch.equal(a[rows], b) for a, b in zip(whole, some, strict=True))
    fewer = make(pictures, views[2:], sizes[2:])
    assert all(torch.equal(a, b) for a, b in zip(whole[2:], fewer, strict=True))


PROGRAM = """
import numpy as np
from seer_pipe.data import pixels_cpu
from tests.data.test_pixels_cpu import batch, make
import hashlib
print(hashlib.sha256(b"".join(x.numpy().tobytes() for x in make(*batch(3)))).hexdigest())
"""


@pytest.mark.slow
def test_processes_that_compile_at_once_and_one_that_finds_it_compiled(tmp_path: Path) -> None:
    environment = os.environ | {"NUMBA_CACHE_DIR": str(tmp_path)}
    root = Path(__file__).resolve().parents[2]

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen([sys.executable, "-c", PROGRAM], cwd=root, env=environment, text=True,
                                stdout=subprocess.PIPE, stderr=subprocess.PIPE)  # fmt: skip

    found = [process.communicate(timeout=1000) for process in [start() for _ in range(2)]]
    assert {process[0] for process in found} == {found[0][0]}
    assert len(found[0][0].strip()) == 64
    assert all("compiling" in process[1] for process in found)
    assert list(tmp_path.rglob("*.nbc"))
    later = start().communicate(timeout=1000)
    assert later == (found[0][0], "")


@pytest.mark.slow
def test_an_installation_that_cannot_be_written(tmp_path: Path) -> None:
    """Nor a home: then it is compiled for this process alone, and works all the same."""
    root = Path(__file__).resolve().parents[2]
    shutil.copytree(root / "seer_pipe", tmp_path / "seer_pipe", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(root / "tests" / "data", tmp_path / "tests" / "data")
    for folder in (tmp_path / "seer_pipe" / "data" / "__pycache__", tmp_path / "home"):
        folder.write_text("")  # a file, where a folder should be made: for root may write everywhere
    environment = {
        name: value for name, value in os.environ.items() if name not in ("NUMBA_CACHE_DIR", "XDG_CACHE_HOME")
    }
    result = subprocess.run([sys.executable, "-c", PROGRAM], cwd=tmp_path, env=environment | {
        "HOME": str(tmp_path / "home"), "PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tmp_path),
    }, text=True, capture_output=True, timeout=1000, check=True)  # fmt: skip
    assert len(result.stdout.strip()) == 64
    assert "compiling" in result.stderr
