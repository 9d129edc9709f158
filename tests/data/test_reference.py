"""The definition of the pixels, held against Pillow and torchvision."""

from dataclasses import replace

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from seer_pipe.config import Augment
from seer_pipe.data.pixels import RECORD, pack
from seer_pipe.data.views import Crops, CropSpec, centre, draw
from tests.data import reference

sides = st.integers(1, 90)


def picture(seed: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@settings(max_examples=60)
@given(st.integers(0, 99), sides, sides, st.integers(1, 64), st.data())
def test_the_cut_is_pillows(seed: int, height: int, width: int, size: int, data: st.DataObject) -> None:
    image = picture(seed, height, width)
    top, left = data.draw(st.integers(0, height - 1)), data.draw(st.integers(0, width - 1))
    h, w = data.draw(st.integers(1, height - top)), data.draw(st.integers(1, width - left))
    ours = reference.cut(image, np.array([top, left, h, w], np.int32), size)
    region = Image.fromarray(image[top : top + h, left : left + w])
    theirs = np.array(region.resize((size, size), Image.Resampling.BILINEAR))
    assert np.abs(ours.astype(int) - theirs).max() <= 2  # its weights have 22 bits: a half goes either way, twice


def test_the_cut_is_pillows_but_for_halves() -> None:
    image = picture(0, 301, 403)
    ours = reference.cut(image, np.array([3, 7, 291, 389], np.int32), 223)
    theirs = Image.fromarray(image[3:294, 7:396]).resize((223, 223), Image.Resampling.BILINEAR)
    assert np.abs(ours.astype(int) - np.array(theirs)).mean() < 0.003
    box = np.array([10.25, 20.5, 200.75, 199.125])
    theirs = Image.fromarray(image).resize((97, 97), Image.Resampling.BILINEAR, (20.5, 10.25, 219.625, 211.0))
    assert np.abs(reference.cut(image, box, 97).astype(int) - np.array(theirs)).mean() < 0.003


factors = st.floats(0, 2)


@settings(max_examples=60)
@given(st.integers(0, 99), st.integers(12, 40), factors, factors, factors, st.floats(-0.5, 0.5), st.floats(0.1, 2.0))
def test_the_steps_are_torchvisions(torchvision, seed, size, brightness, contrast, saturation, hue, sigma) -> None:
    from torchvision.transforms import functional as tv

    x = picture(seed, size, size).astype(np.float64)
    tensor = torch.from_numpy(x).permute(2, 0, 1) / 255
    grey = [0.2989, 0.587, 0.114]  # what it has for the weights of BT.601; they add up to a little less than 1
    assert np.allclose(reference.LUMA, grey, atol=1.1e-4)
    for ours, theirs in [
        (reference.adjust_brightness(x, brightness), tv.adjust_brightness(tensor, brightness)),
        (reference.adjust_contrast(x, contrast), tv.adjust_contrast(tensor, contrast)),
        (reference.adjust_saturation(x, saturation), tv.adjust_saturation(tensor, saturation)),
        (reference.adjust_hue(x, hue), tv.adjust_hue(tensor, hue)),
        (np.repeat(reference.luma(x), 3, 2), tv.rgb_to_grayscale(tensor, 3)),
        (reference.blur(x, sigma), tv.gaussian_blur(tensor, [2 * int(np.ceil(3 * sigma)) + 1] * 2, sigma)),
        (np.where(x < 127.5, x, 255 - x), tv.solarize(tensor, 0.5)),
    ]:
        assert np.abs(ours - 255 * theirs.permute(1, 2, 0).numpy()).max() < 0.03


def test_blur_reaches_past_a_crop_smaller_than_its_kernel() -> None:
    assert np.allclose(reference.blur(np.full((1, 1, 3), 7.0), 2.0), 7)
    x = picture(3, 3, 3).astype(np.float64)
    assert np.allclose(reference.blur(x, 2.0).mean(), x.mean(), rtol=0.2)


def test_the_order_of_the_jitter_is_each_crops_own() -> None:
    image = picture(1, 16, 16)
    crop = one(16, factors=[1.7, 0.4, 1.9, 0.13])
    made = {tuple(order): reference.make(image, replace(crop, order=np.array([order], np.int8)), 0, 16)
            for order in [(0, 1, 2, 3), (1, 0, 2, 3), (3, 2, 1, 0)]}  # fmt: skip
    assert len({x.tobytes() for x in made.values()}) == 3
    by_hand = reference.adjust_contrast(image.astype(float), 0.4)
    for step, factor in ((0, 1.7), (2, 1.9), (3, 0.13)):
        by_hand = reference.JITTER[step](by_hand, float(np.float32(factor)))
    expected = ((by_hand - reference.MEAN) / reference.STD).transpose(2, 0, 1)
    assert np.allclose(made[1, 0, 2, 3], expected, atol=1e-5)


def one(size: int, **changed: list[float]) -> Crops:
    crop = centre(np.array([size]), np.array([size]), size, size)
    return replace(crop, **{name: np.array([value], getattr(crop, name).dtype) for name, value in changed.items()})


def test_the_table_says_what_the_views_say() -> None:
    n, height, width = np.arange(7), np.arange(7) * 31 + 40, np.arange(7)[::-1] * 57 + 30
    views = draw(5, 3, n, height, width, [CropSpec(3, 96, (0.05, 1.0), Augment(solarise_p=0.5))])
    views.append(centre(height, width, 96, 110))
    table = pack(views, height, width, 4096 * n)
    assert table.shape == (4, 7)
    for row, crop in zip(table, views, strict=True):
        for name in ("box", "factors", "order", "sigma", "flip", "grey", "solarise"):
            assert np.array_equal(row[name], getattr(crop, name))
        assert (row["radius"] == np.ceil(3 * crop.sigma.astype(float))).all()
    assert np.array_equal(table[0]["within"][:, 2:], views[0].box[:, :2] + views[0].box[:, 2:])
    assert np.array_equal(table[3]["within"], np.stack([0 * n, 0 * n, height, width], axis=1))
    assert np.array_equal(table[1]["image"], 4096 * n)
    alone = pack([crop.take([4]) for crop in views], height[[4]], width[[4]], 4096 * n[[4]])
    assert alone.tobytes() == table[:, [4]].tobytes()


def test_every_number_of_a_record_lies_at_a_multiple_of_its_size() -> None:
    """So that a kernel may read the table through pointers of each type."""
    assert RECORD.itemsize == 112
    for name, (kind, at) in ((name, RECORD.fields[name][:2]) for name in RECORD.names):
        assert at % kind.base.itemsize == 0, name
