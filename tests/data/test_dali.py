"""Crops against torchvision's functional transforms with the same parameters, on real photographs."""

import gc
import io
import multiprocessing
import subprocess
import sys
import tarfile
import threading
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from seer_pipe.config import Augment
from seer_pipe.data import pixels, pixels_cpu
from seer_pipe.data.dali import MAX_PIXELS, Augmenter, BadImages
from seer_pipe.data.stray import SIEVE
from seer_pipe.data.views import Crops, CropSpec, centre, draw

SPECS = [CropSpec(2, 224, (0.14, 1.0)), CropSpec(2, 96, (0.05, 0.14), Augment(solarise_p=0.3))]


def encode(image: Image.Image, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, **({"format": "JPEG", "quality": 92} | options))
    return file.getvalue()


def synthetic(seed: int, height: int, width: int) -> Image.Image:
    """Smooth colours and a few hard edges, as a photograph has them."""
    rng = np.random.default_rng(seed)
    small = Image.fromarray(rng.integers(0, 256, (9, 12, 3), dtype=np.uint8))
    image = np.array(small.resize((width, height), Image.Resampling.BICUBIC))
    for _ in range(4):
        top, left = rng.integers(0, height - 8), rng.integers(0, width - 8)
        image[top : top + height // 5, left : left + width // 5] = rng.integers(0, 256, 3)
    return Image.fromarray(image)


def sizes(files: list[bytes]) -> tuple[np.ndarray, np.ndarray]:
    width, height = np.array([Image.open(io.BytesIO(file)).size for file in files]).T
    return height, width


def views_of(files: list[bytes], specs: list[CropSpec], seed: int = 1) -> list[Crops]:
    return draw(seed, 0, np.arange(len(files)), *sizes(files), specs)


@pytest.fixture(scope="module")
def files() -> list[bytes]:
    """Of every kind that reaches training: JPEG in colour, grey, CMYK, progressive, with EXIF; PNG, WebP."""
    picture = [synthetic(i, 120 + 37 * i, 420 - 31 * i) for i in range(8)]
    exif = Image.Exif()
    exif[0x0112] = 6  # orientation: must not be applied a second time
    return [
        encode(picture[0]), encode(picture[1].convert("L")), encode(picture[2].convert("CMYK")),
        encode(picture[3], progressive=True), encode(picture[4], exif=exif), encode(picture[5], format="PNG"),
        encode(picture[6], format="WEBP"), encode(picture[7], subsampling=0),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def photos(real_data) -> list[bytes]:
    with tarfile.open(real_data / "wild" / "web-photos.tar") as archive:
        members = [archive.extractfile(member).read() for member in archive if member.isfile()]
    jpegs = [data for data in members[::8] if data[:2] == b"\xff\xd8"][:40]
    grey = [encode(Image.open(io.BytesIO(data)).convert("L")) for data in jpegs[:3]]
    cmyk = [encode(Image.open(io.BytesIO(data)).convert("CMYK")) for data in jpegs[3:6]]
    return jpegs + grey + cmyk


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request) -> str:
    return request.param


def augment(files: list[bytes], views: list[Crops], specs=SPECS, **options) -> list[torch.Tensor]:
    augmenter = Augmenter(specs, **({"threads": 2, "max_batch": 64} | options))
    try:
        return augmenter(files, views)
    finally:
        augmenter.close()


def levels(x: torch.Tensor) -> torch.Tensor:
    """Normalised crops back in 0 to 255."""
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (pixels.MEAN, pixels.STD))
    return x.cpu() * std + mean


def reference(file: bytes, crop: Crops, row: int, size: int) -> torch.Tensor:
    """The same crop by Pillow and torchvision: [3, size, size] in 0 to 255."""
    from torchvision.transforms import functional as tv

    top, left, height, width = crop.box[row].tolist()
    image = Image.open(io.BytesIO(file)).convert("RGB")
    x = tv.pil_to_tensor(tv.resized_crop(image, top, left, height, width, [size, size])) / 255
    if crop.flip[row]:
        x = tv.hflip(x)
    steps = (tv.adjust_brightness, tv.adjust_contrast, tv.adjust_saturation, tv.adjust_hue)
    for step in crop.order[row].tolist():
        x = steps[step](x, float(crop.factors[row, step]))
    if crop.grey[row]:
        x = tv.rgb_to_grayscale(x, num_output_channels=3)
    if crop.sigma[row] > 0:
        x = tv.gaussian_blur(x, [23, 23], float(crop.sigma[row]))
    if crop.solarise[row]:
        x = tv.solarize(x, 0.5)
    return x * 255


def differences(files: list[bytes], views: list[Crops], crops: list[torch.Tensor]) -> np.ndarray:
    """Mean absolute difference to the reference of every crop of every image, in levels of 255."""
    return np.array([
        (levels(x[row]) - reference(file, crop, row, x.shape[-1])).abs().mean()
        for crop, x in zip(views, crops, strict=True) for row, file in enumerate(files)
    ])  # fmt: skip


STILL: dict[str, Any] = {"flip": 0, "jitter_p": 0, "grey_p": 0, "blur_p": 0}
ALONE = {  # one step, and the mean difference allowed to it, in levels of 255
    "cut": (Augment(**STILL), 0.4),
    "flip": (Augment(**STILL | {"flip": 1}), 0.4),
    "brightness": (Augment(**STILL | {"jitter_p": 1, "jitter": (0.8, 0, 0, 0)}), 0.6),
    "contrast": (Augment(**STILL | {"jitter_p": 1, "jitter": (0, 0.8, 0, 0)}), 0.6),
    "saturation": (Augment(**STILL | {"jitter_p": 1, "jitter": (0, 0, 0.8, 0)}), 0.6),
    "hue": (Augment(**STILL | {"jitter_p": 1, "jitter": (0, 0, 0, 0.2)}), 0.6),
    "grey": (Augment(**STILL | {"grey_p": 1}), 0.4),
    "blur": (Augment(**STILL | {"blur_p": 1}), 0.4),
    "solarise": (Augment(**STILL | {"solarise_p": 1}), 0.4),
}


@pytest.mark.parametrize("step", ALONE)
def test_each_step_alone_is_torchvisions(torchvision, photos, device, step):
    strength, allowed = ALONE[step]
    specs = [CropSpec(1, 224, (0.14, 1.0), strength), CropSpec(1, 96, (0.05, 0.14), strength)]
    views = views_of(photos[::3], specs)
    assert differences(photos[::3], views, augment(photos[::3], views, specs, device=device)).max() < allowed


def test_the_whole_recipe_is_torchvisions(torchvision, photos, files, device):
    for some in (photos, files):
        views = views_of(some, SPECS)
        different = differences(some, views, augment(some, views, device=device))
        assert different.max() < 2
        assert different.mean() < 0.5


def test_evaluation_view_is_resize_and_central_crop(torchvision, photos, device):
    from torchvision.transforms import functional as tv

    def theirs(image: Image.Image) -> torch.Tensor:
        return tv.pil_to_tensor(tv.center_crop(tv.resize(image, 256), 224))

    view = centre(*sizes(photos), size=224, resize=256)
    (crops,) = augment(photos, [view], [CropSpec(1, 224, (1, 1))], device=device)
    different = [(x - theirs(Image.open(io.BytesIO(file)).convert("RGB"))).abs().mean()
                 for file, x in zip(photos, levels(crops), strict=True)]  # fmt: skip
    assert max(different) < 1


@pytest.mark.parametrize("options", [{"threads": 1}, {"threads": 3}, {"max_batch": 1}, {"max_batch": 3}])
def test_the_same_image_and_view_give_the_same_bytes_in_any_batch(files, device, options):
    views = views_of(files, SPECS)
    whole = augment(files, views, device=device)
    order = [5, 0, 7, 2, 2]
    some = augment([files[i] for i in order], [crop.take(order) for crop in views], device=device, **options)
    for a, b in zip(whole, some, strict=True):
        assert a.dtype == torch.float32
        assert a.is_contiguous()
        assert torch.equal(a[order], b)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_crops_come_in_the_layout_and_type_asked_for(files, device, layout, dtype):
    """Without another copy: what `contiguous` would give later is there already, and the values are the same."""
    views = views_of(files, SPECS)
    plain = augment(files, views, device=device)
    for a, b in zip(augment(files, views, device=device, layout=layout, dtype=dtype), plain, strict=True):
        assert a.dtype == dtype
        assert a.contiguous(memory_format=layout).data_ptr() == a.data_ptr()
        assert torch.equal(a, b.to(dtype))


def test_crops_are_the_callers_to_keep(files, device):
    augmenter = Augmenter(SPECS, threads=1, max_batch=8, device=device)
    first = augmenter(files, views_of(files, SPECS, seed=1))
    kept = [x.clone() for x in first]
    augmenter(files, views_of(files, SPECS, seed=2))
    augmenter.close()
    assert all(torch.equal(a, b) for a, b in zip(first, kept, strict=True))


def test_normalised_as_public_backbones_expect(device):
    colour = Image.new("RGB", (50, 40), (255, 0, 128))
    png = [encode(colour, format="PNG")]
    (x,) = augment(png, [centre(*sizes(png), size=32, resize=32)], [CropSpec(1, 32, (1, 1))], device=device)
    expected = (torch.tensor([1.0, 0.0, 128 / 255]) - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor(
        [0.229, 0.224, 0.225]
    )
    assert x.shape == (1, 3, 32, 32)
    assert torch.allclose(x[0].cpu(), expected.view(3, 1, 1).expand(3, 32, 32), atol=1e-5)


def test_bad_images_are_named_and_the_others_go_on(files, device):
    bomb = bytearray(encode(Image.new("RGB", (8, 8)), format="PNG"))
    bomb[16:24] = (60_000).to_bytes(4, "big") * 2
    small = encode(synthetic(1, 20, 20))
    bad = {1: files[0][: len(files[0]) // 2], 3: b"", 4: b"<html>gone</html>", 6: bytes(bomb), 7: small}
    mixed = [bad.get(i, file) for i, file in enumerate(files)]
    views = views_of(files, SPECS)
    augmenter = Augmenter(SPECS, threads=2, max_batch=3, device=device)
    with pytest.raises(BadImages) as caught:
        augmenter(mixed, views)
    assert caught.value.indices == [1, 3, 4, 6, 7]
    assert all(reason and "\n" not in reason for reason in caught.value.reasons)
    assert caught.value.reasons[3] == f"60000x60000 pixels, more than the {MAX_PIXELS} allowed"
    assert caught.value.reasons[4].startswith("20x20 pixels, fewer than recorded")
    after = augmenter(files, views)
    augmenter.close()
    assert all(torch.equal(a, b) for a, b in zip(after, augment(files, views, device=device), strict=True))


@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_nothing_nasty_ends_the_augmenter(real_data, files, device, every):
    """Files of decoder test suites and fuzzers, unchecked; whole batches of them."""
    with tarfile.open(real_data / "nasty" / "nasty.tar") as archive:
        nasty = [archive.extractfile(member).read() for member in archive if member.isfile()][::every]
    spec = [CropSpec(1, 32, (1, 1))]
    augmenter = Augmenter(spec, threads=2, max_batch=32, device=device)

    def view(n: int) -> list[Crops]:
        return [centre(np.ones(n), np.ones(n), size=32, resize=32)]

    good = 0
    for start in range(0, len(nasty), 32):
        batch = nasty[start : start + 32]
        bad: list[int] = []
        try:
            augmenter(batch, view(len(batch)))
        except BadImages as error:
            bad = error.indices
        usable = [file for i, file in enumerate(batch) if i not in bad]
        (x,) = augmenter(usable + files[:1], view(len(usable) + 1))
        assert torch.isfinite(x).all()
        good += len(usable)
    augmenter.close()
    assert 0.1 < good / len(nasty) < 0.5


def test_works_in_a_thread_while_others_run(files):
    """The interpreter lock is free while images are decoded and cut."""
    views, result = views_of(files * 8, SPECS), []
    thread = threading.Thread(target=lambda: result.extend(augment(files * 8, views)))
    thread.start()
    turns = 0
    while thread.is_alive():
        thread.join(0.001)  # comes back only with the lock
        turns += 1
    assert turns > 20
    assert all(torch.equal(a, b) for a, b in zip(result, augment(files * 8, views), strict=True))


def test_the_kernel_is_compiled_before_the_first_batch():
    pixels_cpu.kernel.cache_clear()
    Augmenter(SPECS, threads=1, max_batch=1).close()
    assert pixels_cpu.kernel.cache_info().currsize == 1


@pytest.mark.gpu
def test_gpu_makes_the_same_crops(torchvision, files):
    views = views_of(files * 8, SPECS)
    on_gpu = augment(files * 8, views, device="cuda")
    assert all(x.is_cuda and x.is_contiguous() for x in on_gpu)
    for a, b in zip(on_gpu, augment(files * 8, views), strict=True):
        assert (levels(a) - levels(b)).abs().mean(dim=(1, 2, 3)).max() < 2


def test_without_dali_the_extras_are_named() -> None:
    code = "import sys; sys.modules['nvidia.dali.experimental.dynamic'] = None; import seer_pipe.data.dali"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "UserError: no DALI" in done.stderr
    assert "seer-pipe[cuda13]" in done.stderr


def test_a_fork_leaves_the_decoders_of_its_parent_alone(files: list[bytes]) -> None:
    """Collected there, as garbage of the parent, each would wait for threads that a fork has not, and crash it."""
    gc.disable()
    try:
        for _ in range(4):
            augmenter = Augmenter(SPECS, threads=2, max_batch=8)
            augmenter(files, views_of(files, SPECS))
            augmenter.itself = augmenter  # type: ignore[attr-defined]  # a cycle
            del augmenter
        child = multiprocessing.get_context("fork").Process(target=gc.collect)
        child.start()
        child.join()
        assert child.exitcode == 0
    finally:
        gc.enable()
        for _ in range(4):
            SIEVE.release()
