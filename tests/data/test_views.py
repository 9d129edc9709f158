import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seer_pipe.config import Augment
from seer_pipe.data.views import Crops, CropSpec, centre, draw

SEER = [CropSpec(2, 224, (0.14, 1.0)), CropSpec(4, 96, (0.05, 0.14))]
FIELDS = [field.name for field in dataclasses.fields(Crops)]


def same(a: Crops, b: Crops) -> bool:
    return all(np.array_equal(getattr(a, name), getattr(b, name)) for name in FIELDS)


def one_crop(n, height, width, spec, seed=1):
    return draw(seed, 0, np.arange(n), np.full(n, height), np.full(n, width), [spec])[0]


GOLDEN = {
    "box": [[104, 234, 140, 181], [0, 896, 80, 107]],
    "flip": [False, False],
    "factors": [[1.123264, 0.339003, 1.434145, -0.007959], [0.61228, 1.381464, 0.67615, -0.125238]],
    "order": [[3, 2, 1, 0], [1, 3, 2, 0]],
    "grey": [False, False],
    "sigma": [0.0, 1.037593],
    "solarise": [False, False],
}


def test_values_never_change():
    """A run is repeated by these numbers: a change of any of them is a change of every run."""
    crop = draw(31, 2, np.array([7, 10**12]), np.array([375, 80]), np.array([500, 1900]), SEER)[3]
    assert crop.box.tolist() == GOLDEN["box"]
    assert crop.flip.tolist() == GOLDEN["flip"]
    assert crop.factors == pytest.approx(np.array(GOLDEN["factors"]), abs=1e-6)
    assert crop.order.tolist() == GOLDEN["order"]
    assert crop.grey.tolist() == GOLDEN["grey"]
    assert crop.sigma == pytest.approx(GOLDEN["sigma"], abs=1e-6)
    assert crop.solarise.tolist() == GOLDEN["solarise"]


sizes = st.integers(1, 5000)


@given(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=40), st.integers(0, 2**63), st.integers(0, 1000))
def test_box_is_inside_the_image_and_within_its_ranges(shapes, seed, epoch):
    height, width = np.array(shapes).T
    for crop, spec in zip(
        draw(seed, epoch, np.arange(len(shapes)), height, width, SEER), [0, 0, 1, 1, 1, 1], strict=True
    ):
        top, left, h, w = crop.box.T
        assert crop.box.dtype == np.int32
        assert (top >= 0).all()
        assert (left >= 0).all()
        assert (h > 0).all()
        assert (w > 0).all()
        assert (top + h <= height).all()
        assert (left + w <= width).all()
        low, high = SEER[spec].scale
        # sides are rounded to pixels: half a pixel more or less than the drawn area and ratio
        right_area = ((h + 0.5) * (w + 0.5) >= low * height * width) & ((h - 0.5) * (w - 0.5) <= high * height * width)
        right_ratio = ((w + 0.5) / (h - 0.5) >= 3 / 4) & ((w - 0.5) / (h + 0.5) <= 4 / 3)
        central = (abs(2 * top + h - height) <= 1) & (abs(2 * left + w - width) <= 1)
        whole_side = (h == height) | (w == width)
        assert (right_ratio & right_area | central & whole_side).all()


def test_impossible_box_falls_back_to_the_centre():
    flat, tall = one_crop(8, 10, 4000, SEER[0]), one_crop(8, 4000, 10, SEER[0])
    assert (flat.box == [0, 1993, 10, 13]).all()
    assert (tall.box == [1993, 0, 13, 10]).all()
    whole = one_crop(8, 100, 101, CropSpec(1, 32, (1.5, 2.0)))
    assert (whole.box == [0, 0, 100, 101]).all()


@settings(max_examples=30)
@given(st.permutations(range(12)), st.integers(1, 12))
def test_views_do_not_depend_on_the_batch(order, n):
    sample, height, width = np.arange(12) * 977, np.arange(12) * 31 + 40, np.arange(12)[::-1] * 57 + 30
    whole = draw(5, 3, sample, height, width, SEER)
    rows = np.array(order[:n])
    some = draw(5, 3, sample[rows], height[rows], width[rows], SEER)
    assert all(same(a.take(rows), b) for a, b in zip(whole, some, strict=True))
    assert all(len(crop) == n for crop in some)


def test_views_depend_on_seed_pass_sample_and_place():
    n = np.arange(500)
    size = np.full(500, 300)
    base = draw(5, 3, n, size, size, SEER)
    others = [
        draw(6, 3, n, size, size, SEER),
        draw(5, 4, n, size, size, SEER),
        draw(5, 3, n + 500, size, size, SEER),
    ]
    pairs = [(base[0], other[0]) for other in others] + [(base[0], base[1]), (base[2], base[3])]
    for a, b in pairs:
        assert (a.box == b.box).all(axis=1).mean() < 0.01
        assert 0.4 < (a.flip == b.flip).mean() < 0.6


def test_adding_crops_or_strengths_leaves_the_other_crops_alone():
    n, size = np.arange(50), np.full(50, 300)
    weak = dataclasses.replace(SEER[0], count=1, augment=Augment(blur_p=0.1, solarise_p=0.2))
    strong = dataclasses.replace(SEER[0], count=1)
    assert same(draw(1, 0, n, size, size, [strong, weak])[0], draw(1, 0, n, size, size, SEER)[0])
    asymmetric = draw(1, 0, n, size, size, [strong, weak])[1]
    assert np.array_equal(asymmetric.box, draw(1, 0, n, size, size, SEER)[1].box)


def distance(a, b):
    """Largest distance of two empirical distribution functions (Kolmogorov-Smirnov)."""
    both = np.sort(np.concatenate([a, b]))
    return np.abs(
        np.searchsorted(np.sort(a), both, "right") / len(a) - np.searchsorted(np.sort(b), both, "right") / len(b)
    ).max()


@pytest.mark.parametrize(("height", "width"), [(375, 500), (120, 900), (61, 47)])
@pytest.mark.parametrize("spec", SEER)
def test_boxes_are_distributed_as_torchvisions(torchvision, height, width, spec):
    import torch
    from torchvision.transforms import RandomResizedCrop

    n = 4000
    torch.manual_seed(0)
    image = torch.empty(3, height, width)
    theirs = np.array([RandomResizedCrop.get_params(image, list(spec.scale), [3 / 4, 4 / 3]) for _ in range(n)])
    ours = one_crop(n, height, width, spec).box
    for values in (
        lambda b: b[:, 0],
        lambda b: b[:, 1],
        lambda b: b[:, 2],
        lambda b: b[:, 3],
        lambda b: b[:, 2] * b[:, 3],
    ):
        assert distance(values(theirs), values(ours)) < 1.95 * math.sqrt(2 / n)  # one in a thousand by chance


def test_jitter_is_distributed_as_torchvisions(torchvision):
    import torch
    from torchvision.transforms import ColorJitter

    n = 4000
    torch.manual_seed(0)
    transform = ColorJitter(0.8, 0.8, 0.8, 0.2)
    ranges = transform.brightness, transform.contrast, transform.saturation, transform.hue
    theirs = [ColorJitter.get_params(*ranges) for _ in range(n)]
    crop = one_crop(n, 200, 300, dataclasses.replace(SEER[0], augment=Augment(jitter_p=1.0)))
    for i in range(4):
        assert distance(np.array([row[1 + i] for row in theirs]), crop.factors[:, i]) < 1.95 * math.sqrt(2 / n)
    orders = np.unique(crop.order, axis=0, return_counts=True)
    assert len(orders[0]) == 24
    assert (np.abs(orders[1] / n - 1 / 24) < 5 * math.sqrt(1 / 24 / n)).all()


def test_a_fixed_jitter_order_changes_the_order_alone():
    n, size = np.arange(60), np.full(60, 300)
    fixed = [dataclasses.replace(spec, augment=Augment(jitter_order="fixed")) for spec in SEER]
    for drawn, crop in zip(draw(1, 0, n, size, size, SEER), draw(1, 0, n, size, size, fixed), strict=True):
        assert (crop.order == [0, 1, 2, 3]).all()
        assert same(dataclasses.replace(drawn, order=crop.order), crop)


def test_probabilities():
    n = 20000
    crop = one_crop(n, 200, 300, dataclasses.replace(SEER[0], augment=Augment(solarise_p=0.3)))
    jittered = (crop.factors != [1, 1, 1, 0]).any(axis=1)
    for happened, p in [
        (crop.flip, 0.5), (jittered, 0.8), (crop.grey, 0.2), (crop.sigma > 0, 0.5), (crop.solarise, 0.3)
    ]:  # fmt: skip
        assert abs(happened.mean() - p) < 5 * math.sqrt(p * (1 - p) / n)
    events = np.corrcoef([crop.flip, jittered, crop.grey, crop.sigma > 0, crop.solarise])
    assert np.abs(events - np.eye(5)).max() < 5 / math.sqrt(n)
    assert crop.sigma[crop.sigma > 0].min() >= 0.1
    assert crop.sigma.max() < 2.0
    assert abs(crop.sigma[crop.sigma > 0].mean() - 1.05) < 0.03


def test_nothing_is_drawn_where_nothing_is_wanted():
    still = Augment(flip=0, jitter_p=0, grey_p=0, blur_p=0)
    crop = one_crop(300, 200, 300, dataclasses.replace(SEER[0], augment=still))
    assert not (crop.flip | crop.grey | crop.solarise).any()
    assert (crop.factors == [1, 1, 1, 0]).all()
    assert (crop.sigma == 0).all()


@given(st.lists(st.tuples(sizes, sizes), min_size=1, max_size=20))
def test_centre_is_what_torchvision_resizes_and_crops(shapes):
    height, width = np.array(shapes).T
    crop = centre(height, width, size=224, resize=256)
    for (h, w), box in zip(shapes, crop.box, strict=True):
        short, long = min(h, w), max(h, w)
        resized = {short: 256, long: int(256 * long / short)} | {short: 256}  # torchvision's Resize
        scale = np.array([h / resized[h], w / resized[w]])
        first = [round((resized[side] - 224) / 2) for side in (h, w)]  # torchvision's CenterCrop
        np.testing.assert_allclose(box, [*first * scale, *224 * scale], rtol=1e-12)
        assert (box[:2] + box[2:] <= np.array([h, w]) * (1 + 1e-12)).all()
    assert not (crop.flip | crop.grey | crop.solarise | (crop.sigma > 0)).any()
    assert (crop.factors == [1, 1, 1, 0]).all()


def test_centre_that_does_not_fit_is_refused():
    with pytest.raises(ValueError, match="224 pixels does not fit an image resized to 128"):
        centre(np.array([100]), np.array([100]), size=224, resize=128)
