"""The kernels for GPUs against the definition in float64: on a GPU where there is one, else in Triton's interpreter."""

import itertools
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seer_pipe.data.pixels import RECORD, pack
from seer_pipe.data.views import ORDERS, Crops, CropSpec, draw
from tests.data import reference, test_pixels_cpu
from tests.data.test_pixels_cpu import DTYPES, LAYOUTS, LEVELS, STEPS, STRONG, one, picture

pytest.importorskip("triton", reason="no Triton here: pip install --no-deps triton==3.6.0")
from seer_pipe.data import pixels_gpu

DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def make(
    pictures: Sequence[np.ndarray], views: Sequence[Crops], sizes: Sequence[int],
    layout: torch.memory_format = torch.contiguous_format, dtype: torch.dtype = torch.float32,
) -> list[torch.Tensor]:  # fmt: skip
    images = [torch.from_numpy(image).to(DEVICE) for image in pictures]
    out = [torch.full((len(pictures), 3, size, size), torch.nan, dtype=dtype, device=DEVICE)
           .contiguous(memory_format=layout) for size in sizes]  # fmt: skip
    height, width = np.array([image.shape[:2] for image in pictures]).T
    table = pack(views, height, width, np.array([image.data_ptr() for image in images], np.uint64))
    pixels_gpu.make(table, out, layout)
    return [x.cpu() for x in out]


def many(crops: Sequence[Crops]) -> Crops:
    """Each alone for one image, as one for many."""
    return Crops(*(np.concatenate([getattr(crop, name) for crop in crops]) for name in Crops.__annotations__))


def differences(pictures: Sequence[np.ndarray], crop: Crops, size: int) -> np.ndarray:
    """Levels, [n, 3, size, size]."""
    (x,) = make(pictures, [crop], [size])
    meant = np.stack([reference.make(image, crop, row, size) for row, image in enumerate(pictures)])
    return np.abs(x.numpy() - meant) * LEVELS


@pytest.mark.parametrize("size", [1, 7, 33])
def test_each_step_alone(size: int) -> None:
    """On crops as large as the picture, where the cut is exact."""
    crop = many([one(size, size, size, **step) for step in STEPS.values()])
    assert differences([picture(size, size, size)] * len(STEPS), crop, size).max() < 1e-3


def test_each_order_of_the_jitter() -> None:
    strong = {"factors": (1.4, 0.6, 1.6, 0.11), "sigma": 0.8, "solarise": True}
    crop = many([one(12, 12, 12, order=order, **strong) for order in ORDERS])
    assert differences([picture(1, 12, 12)] * len(ORDERS), crop, 12).max() < 0.02


# Of few sizes, since each is compiled on a GPU.
sides, sizes_cut, sizes_made = st.integers(1, 40), st.sampled_from([1, 2, 7, 12, 33]), st.sampled_from([9, 12, 20])


@settings(max_examples=20)
@given(st.integers(0, 99), sides, sides, sizes_cut, st.booleans(), st.booleans(), st.data())
def test_the_cut_of_any_box(
    seed: int, height: int, width: int, size: int, flip: bool, between: bool, data: st.DataObject
) -> None:
    """Of whole pixels and between them, down to one pixel, at the picture's edges; up and down in size."""
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    h, w = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    box = np.array([top, left, h, w], np.int32)
    crop = one(1, 1, size, flip=flip)
    if between:
        crop = many([crop])
        box = box + data.draw(st.floats(0, 0.99)) * np.array([1, 1, -1, -1])
    crop = Crops(box[None], *(getattr(crop, name) for name in list(Crops.__annotations__)[1:]))
    different = differences([picture(seed, height, width)], crop, size)
    assert different.max() < 1.01  # float32 may round to the next level
    assert (different > 0.01).mean() <= max(0.01, 3 / different.size)


def test_a_very_tall_picture() -> None:
    assert (differences([picture(5, 1500, 21)], one(1500, 21, 20), 20) > 0.01).mean() < 2e-3


@settings(max_examples=8)
@given(st.integers(0, 2**40), st.integers(1, 60), st.integers(1, 60), sizes_made)
def test_whole_recipes_are_as_defined_and_as_on_a_cpu(seed: int, height: int, width: int, size: int) -> None:
    pictures = [picture(seed % 100, height, width)]
    sample = np.array([seed]), np.array([height]), np.array([width])
    views = draw(seed, 0, *sample, [CropSpec(1, size, (0.05, 1.0), STRONG)])
    different = differences(pictures, views[0], size)
    beside = (
        make(pictures, views, [size])[0] - test_pixels_cpu.make(pictures, views, [size])[0]
    ).abs().numpy() * LEVELS
    for x in (different, beside):
        assert np.isfinite(x).all()
        assert x.mean() < 0.05
        assert (x > 0.05).mean() < 0.05  # where a level went the other way, and what blur made of it


def batch(n: int) -> tuple[list[np.ndarray], list[Crops], list[int]]:
    height, width = np.arange(n) * 5 + 12, np.arange(n)[::-1] * 7 + 9
    specs = [CropSpec(2, 20, (0.14, 1.0), STRONG), CropSpec(1, 9, (0.05, 0.14), STRONG)]
    views = draw(3, 1, np.arange(n), height, width, specs)
    return [picture(i, h, w) for i, (h, w) in enumerate(zip(height, width, strict=True))], views, [20, 20, 9]


@pytest.mark.parametrize(("layout", "dtype"), list(itertools.product(LAYOUTS, DTYPES)))
def test_what_is_written_is_the_same_in_every_layout_and_type(layout: torch.memory_format, dtype: torch.dtype) -> None:
    pictures, views, sizes = batch(2)
    plain = make(pictures, views, sizes)
    for x, y in zip(make(pictures, views, sizes, layout, dtype), plain, strict=True):
        assert x.is_contiguous(memory_format=layout)
        if dtype == torch.bfloat16 and DEVICE == "cpu":  # Triton's interpreter cuts it off
            y = ((y.view(torch.int32) >> 16) << 16).view(torch.float32)
        assert torch.equal(x, y.to(dtype))


def test_a_crop_does_not_depend_on_its_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor on the crops beside it, nor on how many images share a launch."""
    pictures, views, sizes = batch(4)
    whole = make(pictures, views, sizes)
    rows = [3, 0, 2, 2]
    some = make([pictures[i] for i in rows], [view.take(rows) for view in views], sizes)
    assert all(torch.equal(a[rows], b) for a, b in zip(whole, some, strict=True))
    fewer = make(pictures, views[1:], sizes[1:])
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], fewer, strict=True))
    monkeypatch.setattr(pixels_gpu, "IMAGES", 2)
    assert all(torch.equal(a, b) for a, b in zip(whole, make(pictures, views, sizes), strict=True))


SEER = [CropSpec(2, 224, (0.14, 1.0), STRONG), CropSpec(6, 96, (0.05, 0.14), STRONG)]
SIZES = [spec.size for spec in SEER for _ in range(spec.count)]


def test_few_launches_the_same_for_any_images_and_views() -> None:
    """Nothing is run: only what would be, for 256 images of 2x224+6x96. And one copy to the device."""
    out = [torch.empty(256, 3, size, size, dtype=torch.float16) for size in SIZES]

    def launched(seed: int, height: np.ndarray, width: np.ndarray) -> list[tuple[object, tuple[int, ...]]]:
        table = pack(draw(seed, 0, np.arange(256), height, width, SEER), height, width, np.arange(256) * 4096)
        found = list(pixels_gpu.launches(table, out, torch.channels_last))
        copied = {id(arguments["table"]): arguments["table"].nbytes for _, _, arguments in found}
        assert list(copied.values()) == [256 * 8 * RECORD.itemsize + 8 * 8]
        between = {id(x): x.nbytes for _, _, arguments in found[:20] for name, x in arguments.items()
                   if name in ("levels", "planes", "blurred")}  # fmt: skip
        assert sum(between.values()) == 27 * 64 * 2 * 224**2
        return [(kernel, grid) for kernel, grid, _ in found]

    small = launched(1, np.full(256, 30), np.full(256, 40))
    large = launched(2, np.arange(256) * 17 + 1, np.arange(256) * 3 + 500)
    assert small == large
    assert len(small) == 5 * 2 * 4  # kernels, sizes, and 64 images at a time


@pytest.fixture
def traffic(monkeypatch: pytest.MonkeyPatch) -> dict[str, int]:
    """Bytes that the kernels read and write, but for single numbers."""
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    builder, counted = interpreter.InterpreterBuilder, {"read": 0, "written": 0}

    def count(name: str, what: str) -> None:
        original = getattr(builder, name)

        def counting(self: object, pointers: object, *arguments: object) -> object:
            masks = [a.data for a in arguments if hasattr(a, "data") and a.data.dtype == np.bool_]
            if masks[0].size > 1:
                counted[what] += int(masks[0].sum()) * pointers.get_element_ty().primitive_bitwidth // 8
            return original(self, pointers, *arguments)

        monkeypatch.setattr(builder, name, counting)

    count("create_masked_load", "read")
    count("create_masked_store", "written")
    return counted


@pytest.mark.skipif(DEVICE == "cuda", reason="counted in the interpreter")
@pytest.mark.parametrize("change", [{}, {"factors": (1, 0.5, 1, 0)}, {"sigma": 0.9}])
def test_bytes_read_and_written(traffic: dict[str, int], change: dict[str, object]) -> None:
    """Levels once out and once back, twice for contrast; planes likewise, and for the taps of a blur."""
    radius = 3 if "sigma" in change else 0
    make([picture(0, 20, 20)], [one(20, 20, 20, **change)], [20], dtype=torch.float16)
    numbers = 3 * 20 * 20  # of a crop; and the cut of a box as large as it reads each pixel once
    taps = 2 * radius + 1
    assert traffic["written"] == numbers * (1 + 4 + (4 if radius else 0) + 2)
    assert traffic["read"] == numbers * (1 + (2 if "factors" in change else 1) + 4 * taps * (2 if radius else 1))


COMPILE = """
import sys
import triton.language as tl
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from seer_pipe.data import pixels_gpu
types = {"table": "*i64", "outs": "*i64", "levels": "*u8", "means": "*fp32", "planes": "*fp32", "blurred": "*fp32"}
types |= dict.fromkeys(("first", "image", "n"), "i32")
for name in ("_cut", "_mean", "_colour", "_blur", "_finish"):
    kernel = getattr(pixels_gpu, name)
    constants = {"size": 224} | ({"kind": tl.bfloat16, "channels_last": True} if name == "_finish" else {})
    signature = {argument: types.get(argument, "constexpr") for argument in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(k),): v for k, v in constants.items()})
    made = compile(source, target=GPUTarget("cuda", int(sys.argv[1]), 32))
    print(name, len(made.asm["cubin"]), "cvt.rn.bf16" in made.asm["ptx"])
"""


@pytest.mark.parametrize("capability", [pytest.param("80", marks=pytest.mark.slow), "90"])  # A100, H100
def test_the_kernels_compile_for_gpus(tmp_path: Path, capability: str) -> None:
    """Triton and the assembler that it brings along need no GPU for that."""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE, capability], cwd=Path(__file__).resolve().parents[2], text=True,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, timeout=240, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    made = [line.split() for line in result.stdout.splitlines()]
    assert len(made) == 5
    assert all(int(size) > 1000 for _, size, _ in made)
    assert made[-1][2] == "True"  # rounds to the nearest bf16, where the interpreter does not


@pytest.mark.gpu
@pytest.mark.parametrize("layout", LAYOUTS)
def test_real_sizes_on_a_gpu(layout: torch.memory_format) -> None:
    height, width = np.arange(9) * 113 + 90, np.arange(9)[::-1] * 97 + 60
    views = draw(7, 2, np.arange(9), height, width, SEER)
    pictures = [picture(i, h, w) for i, (h, w) in enumerate(zip(height, width, strict=True))]
    on_cpu = test_pixels_cpu.make(pictures, views, SIZES)
    for x, y in zip(make(pictures, views, SIZES, layout), on_cpu, strict=True):
        different = (x - y).abs() * torch.from_numpy(LEVELS)
        assert different.mean() < 0.02
        assert (different > 0.05).float().mean() < 0.02
