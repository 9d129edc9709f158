"""Patches out of a grid: where they lie, in which order they come, and that nothing but content tells their places."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from seer_pipe.config import Augment, Grid
from seer_pipe.data.views import Crops, CropSpec, draw

STILL = Augment(flip=0, jitter_p=0, grey_p=0, blur_p=0)
JIGSAW = CropSpec(1, 16, (0.6, 1.0), layout="grid")


def drawn(spec: CropSpec, n: int = 300, height: int = 300, width: int = 400, seed: int = 1) -> list[Crops]:
    return draw(seed, 0, np.arange(n), np.full(n, height), np.full(n, width), [spec])


def overlaps(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Pixels that two boxes [n, 4] share, [n]."""
    top, bottom = np.maximum(one[:, :2], other[:, :2]), np.minimum(one[:, :2] + one[:, 2:], other[:, :2] + other[:, 2:])
    return np.maximum(0, bottom - top).prod(1)


@settings(max_examples=100)
@given(
    st.integers(0, 2**60), st.integers(1, 700), st.integers(1, 700), st.integers(2, 8), st.floats(0.05, 1.9),
    st.floats(0, 1),
)  # fmt: skip
def test_patches_lie_in_the_crop_and_are_of_one_size(
    seed: int, height: int, width: int, side: int, patch: float, jitter: float
) -> None:
    spec = replace(JIGSAW, grid=Grid(side=side, patch=patch, jitter=jitter))
    (whole,) = drawn(replace(spec, layout="independent"), 5, height, width, seed)
    views = drawn(spec, 5, height, width, seed)
    for view in views:
        assert view.box.dtype == np.int32
        assert (view.box[:, 2:] == views[0].box[:, 2:]).all()
        assert (view.box[:, 2:] >= 1).all()
        assert (view.box[:, :2] >= whole.box[:, :2]).all()
        assert (view.box[:, :2] + view.box[:, 2:] <= whole.box[:, :2] + whole.box[:, 2:]).all()
    apart = (whole.box[:, 2:] >= side).all(1) & (patch <= 1)
    for number, view in enumerate(views):
        for other in views[:number]:
            assert not overlaps(view.box, other.box)[apart].any()


def test_places_are_those_of_the_published_grids() -> None:
    """Jigsaw: 64 of 85 pixels at an offset of 0 to 21; CPC: 7 x 7 of 64 pixels, 32 apart, out of 256."""
    jigsaw = np.stack([view.box for view in drawn(replace(JIGSAW, scale=(1, 1), augment=STILL), 3000, 255, 255)])
    assert (jigsaw[:, :, 2:] == 63).all()  # 0.75 of 85, rounded down
    corners = 85 * np.stack(np.divmod(np.arange(9), 3), axis=1)
    offsets = jigsaw[:, :, :2] - corners[:, None]
    assert (offsets.min((0, 1)) == 0).all()
    assert (offsets.max((0, 1)) == 22).all()
    counts = np.bincount(offsets.ravel())
    assert np.abs(counts / offsets.size - 1 / 23).max() < 0.005
    cpc = drawn(replace(JIGSAW, scale=(1, 1), grid=Grid(side=7, patch=1.75)), 2, 256, 256)
    expected = [[32 * row, 32 * column, 64, 64] for row in range(7) for column in range(7)]
    assert np.stack([view.box[0] for view in cpc]).tolist() == expected


@settings(max_examples=25)
@given(st.integers(2, 10), st.floats(0.05, 1.95), st.floats(0, 1))
def test_rows_that_are_apart_share_no_pixels(side: int, patch: float, jitter: float) -> None:
    """And the rows in between do; of 4000 pixels, where rounding to whole ones counts for little."""
    grid = Grid(side=side, patch=patch, jitter=jitter)
    assert Grid(side=7, patch=1.75).apart == 2
    views = drawn(replace(JIGSAW, scale=(1, 1), augment=STILL, grid=grid), 1, 4000, 4000)
    tops, height = [int(view.box[0, 0]) for view in views[::side]], int(views[0].box[0, 2])
    for above in range(side):
        for row in range(above + 1, side):
            shared = tops[above] + height - tops[row]
            assert (shared <= 0.1 * height + 2) if row - above >= grid.apart else (shared > 0)


def test_without_jitter_a_patch_is_in_the_middle_of_its_cell() -> None:
    views = drawn(replace(JIGSAW, scale=(1, 1), grid=Grid(patch=0.5, jitter=0)), 2, 120, 120)
    assert [view.box[0].tolist() for view in views[:4]] == [[10, 10, 20, 20], [10, 50, 20, 20], [10, 90, 20, 20],
                                                            [50, 10, 20, 20]]  # fmt: skip


def test_of_a_mirrored_picture_the_first_column_is_the_right_one() -> None:
    grid = Grid(jitter=0)
    plain = drawn(replace(JIGSAW, grid=grid, augment=STILL))
    mirrored = drawn(replace(JIGSAW, grid=grid, augment=STILL.model_copy(update={"flip": 1})))
    for cell, view in enumerate(mirrored):
        assert view.flip.all()
        assert (view.box == plain[cell + 2 - 2 * (cell % 3)].box).all()
    mixed = drawn(JIGSAW)
    assert all((view.flip == mixed[0].flip).all() for view in mixed)
    assert 0.4 < mixed[0].flip.mean() < 0.6


def test_a_shuffled_grid_is_the_grid_in_another_order() -> None:
    plain, mixed = drawn(JIGSAW, 4000), drawn(replace(JIGSAW, layout="shuffled_grid"), 4000)
    cells = np.stack([view.cell for view in mixed])
    assert (np.sort(cells, axis=0) == np.arange(9)[:, None]).all()
    boxes = np.stack([view.box for view in plain])
    for view in mixed:
        assert (view.box == boxes[view.cell, np.arange(4000)]).all()
    at = np.stack([(cells == cell).mean(1) for cell in range(9)])  # every cell is as often at every place
    assert np.abs(at - 1 / 9).max() < 0.03
    assert len(np.unique(cells, axis=1).T) > 3900
    assert [view.cell[0] for view in plain] == list(range(9))


def test_orders_of_a_set_are_drawn_evenly() -> None:
    orders = np.array([np.roll(np.arange(9), shift) for shift in (1, 4, 5)], np.uint8)
    views = drawn(replace(JIGSAW, layout="shuffled_grid", orders=orders), 6000)
    found, count = np.unique(np.stack([view.cell for view in views]), axis=1, return_counts=True)
    assert found.T.tolist() == sorted(orders.tolist())
    assert np.abs(count / 6000 - 1 / 3).max() < 0.03


def test_patches_are_a_function_of_seed_pass_sample_and_place() -> None:
    """As all views are; each patch has colours of its own, and other crops stay as they are beside a grid."""
    spec = replace(JIGSAW, layout="shuffled_grid")
    n, size = np.arange(40), np.full(40, 300)
    both = draw(3, 1, n, size, size, [CropSpec(1, 24, (0.1, 1.0)), spec])
    alone = draw(3, 1, n, size, size, [CropSpec(1, 24, (0.1, 1.0))])
    assert (both[0].box == alone[0].box).all()
    few = draw(3, 1, n[[7, 2]], size[:2], size[:2], [CropSpec(1, 24, (0.1, 1.0)), spec])
    for one, other in zip(both, few, strict=True):
        kept = one.take([7, 2])
        for name in Crops.__annotations__:
            assert np.array_equal(getattr(kept, name), getattr(other, name))
    factors = np.stack([view.factors[:, 0] for view in both[1:]])
    assert len(np.unique(factors[:, both[1].factors[:, 0] != 1][:, 0])) > 3
    for changed in (draw(4, 1, n, size, size, [spec]), draw(3, 2, n, size, size, [spec])):
        assert (np.stack([view.cell for view in changed]) == np.stack([view.cell for view in both[1:]])).mean() < 0.3


def test_a_box_of_its_own_is_cut_out_of_each_patch() -> None:
    """Of a share of its area; patches of full scale are as they were, and places, colours and other grids too."""
    grid = Grid(side=7, patch=1.75)
    whole = drawn(replace(JIGSAW, grid=grid), height=640, width=640)
    part = drawn(replace(JIGSAW, grid=grid.model_copy(update={"scale": (0.7, 0.9)})), height=640, width=640)
    shares = []
    for one, inner in zip(whole, part, strict=True):
        assert (inner.box[:, :2] >= one.box[:, :2]).all()
        assert (inner.box[:, :2] + inner.box[:, 2:] <= one.box[:, :2] + one.box[:, 2:]).all()
        assert np.array_equal(inner.factors, one.factors)
        shares.append(inner.box[:, 2:].prod(1) / one.box[:, 2:].prod(1))
    found = np.stack(shares)
    assert 0.68 < found.min() < 0.71
    assert (found < 0.92).mean() > 0.99  # of few no box of ten fits, and they are whole
    assert len(np.unique(found[:, 0].round(4))) > 40  # of 49: each patch has its own
    with pytest.raises(ValueError, match="scale must be"):
        Grid(scale=(0.9, 0.7))


GOLDEN = {
    "cell": [[3, 7, 8, 1, 2, 6, 5, 4, 0], [1, 2, 3, 8, 7, 5, 4, 6, 0]],
    "box": [[42, 156, 84, 86], [58, 971, 20, 26]],
    "grey": [[2, 2], [1, 0], [3, 0], [1, 0], [1, 0], [2, 1], [3, 0], [0, 4], [1, 2]],
}


def test_values_never_change() -> None:
    """A run is repeated by these numbers."""
    spec = replace(JIGSAW, layout="shuffled_grid", augment=Augment(channel_p=0.5))
    views = draw(31, 2, np.array([7, 10**12]), np.array([375, 80]), np.array([500, 1900]), [spec])
    assert np.stack([view.cell for view in views]).T.tolist() == GOLDEN["cell"]
    assert views[3].box.tolist() == GOLDEN["box"]
    assert [view.grey.tolist() for view in views] == GOLDEN["grey"]


def test_one_channel() -> None:
    """So often, each as often; a grey crop is grey."""
    views = drawn(CropSpec(1, 24, (0.1, 1.0), Augment(grey_p=0.4, channel_p=0.5)), 20000)
    share = np.bincount(views[0].grey, minlength=5) / 20000
    assert np.abs(share - [0.3, 0.4, 0.1, 0.1, 0.1]).max() < 0.02


@pytest.mark.parametrize("patch", [3, 3.5])
def test_a_patch_as_large_as_the_grid_is_refused(patch: float) -> None:
    with pytest.raises(ValueError, match="as large as the whole grid"):
        Grid(patch=patch)
