"""The map of an atlas: every image once, each alone in its cell, the same for the same input, and its tiles."""

import errno
import os
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from seer_pipe.report import layout
from seer_pipe.report.clusters import clusters
from seer_pipe.report.shown import NONE, OTHER, choose, coarsest, labelled, numbers, priority, shown
from seer_pipe.report.tiles import SIDE, TILE, brightness, draw_tiles, small_pictures
from seer_pipe.report.words import names
from seer_pipe.shards import ShardSet, put_sidecar
from tests.report.test_atlas import script, write_embeddings
from tests.train.helpers import make_pictures

few = settings(max_examples=30)  # the first call compiles
sizes = st.lists(st.integers(1, 40), min_size=1, max_size=12)


def placed(count: list[int], seed: int) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[Any]]:
    rng = np.random.default_rng(seed)
    images = np.array(count)
    disc = layout.spread(rng.standard_normal((len(images), 2)), layout.radii(images))
    target = layout.targets(disc, images, rng.uniform(-np.pi, np.pi, images.sum()))
    home = np.repeat(np.arange(len(images)), images)
    cell, origin = layout.cells(target, np.arange(len(home)) - (np.cumsum(images) - images)[home])
    return cell, target - origin, home


@few
@given(sizes, st.integers(0, 99))
def test_every_image_has_a_cell_alone_near_where_it_would_stand(count: list[int], seed: int) -> None:
    cell, target, _ = placed(count, seed)
    assert len(np.unique(cell, axis=0)) == len(cell) == sum(count)
    assert cell.min() == 0
    assert np.linalg.norm(cell - target, axis=1).max() < 2 + np.sqrt(sum(count))
    again, _, _ = placed(count, seed)
    assert np.array_equal(cell, again)


@few
@given(sizes, st.integers(0, 99))
def test_discs_do_not_cover_each_other(count: list[int], seed: int) -> None:
    radius = layout.radii(np.array(count))
    place = np.random.default_rng(seed).standard_normal((len(count), 2))
    place[1::2] = place[: len(place) // 2 * 2 : 2]  # two in one place
    found = layout.spread(place, radius)
    apart = np.linalg.norm(found[:, None] - found[None], axis=2) - radius[:, None] - radius[None]
    assert apart[~np.eye(len(count), dtype=bool)].min(initial=0) > -0.5  # cells


def test_clusters_that_are_near_stand_near_and_the_layout_is_the_same_again() -> None:
    pytest.importorskip("openTSNE", reason="no openTSNE here: pip install '.[atlas]'")
    rng = np.random.default_rng(0)
    of = np.repeat(np.arange(5), 12)
    points = (8 * rng.standard_normal((5, 16))[of] + rng.standard_normal((60, 16))).astype(np.float32)
    place = layout.lay_out(points)
    apart = np.linalg.norm(place[:, None] - place[None], axis=2) + np.diag(np.full(60, np.inf))
    nearest = np.argsort(apart, axis=1)[:, :6]
    assert (of[nearest] == of[:, None]).mean() > 0.95
    assert np.array_equal(place, layout.lay_out(points))


def test_without_tsne_by_principal_components(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layout, "find_spec", lambda _: None)
    points = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    assert np.array_equal(layout.lay_out(points), points[:, :2])


def test_an_image_stands_towards_the_cluster_that_it_resembles() -> None:
    place = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0]])
    near = np.array([[1, 2], [0, 2], [0, 1]])
    alike = np.array([[0.9, 0.1], [0.1, 0.9], [0.5, 0.5]], np.float32)
    angle = layout.towards(alike, np.array([0, 0, 1]), near, place)
    assert angle[0] == pytest.approx(-np.pi / 4, abs=0.01)  # to the right, away from above
    assert angle[1] == pytest.approx(3 * np.pi / 4, abs=0.01)


def test_one_cluster_alone_and_features_that_are_all_the_same(tmp_path: Path) -> None:
    """What a collapsed network gives."""
    shards = ShardSet.open(make_pictures(tmp_path / "set", [20]))
    for number, cluster in enumerate((np.zeros(20, np.int64), np.arange(20) // 2)):
        write_embeddings(tmp_path / f"{number}.parquet", [f"{n:06d}" for n in range(20)], ["00000.tar"] * 20,
                         list(range(20)), cluster, np.ones((20, 4)))  # fmt: skip
        found = clusters(tmp_path / f"{number}.parquet", shards, None)
        on_map = shown(found, shards, 100, 4, None, TILE)
        assert len(np.unique(on_map.cell, axis=0)) == 20
        assert np.isfinite(on_map.disc).all()


@few
@given(st.lists(st.integers(1, 60), min_size=1, max_size=8), st.integers(1, 100), st.integers(1, 5))
def test_images_are_chosen_evenly_of_each_cluster_with_the_nearest_and_those_asked_for(
    count: list[int], most: int, least: int
) -> None:
    start = np.concatenate([[0], np.cumsum(count)])
    ranked = np.random.default_rng(0).permutation(start[-1])
    forced = ranked[-1:]
    rows, begins = choose(ranked, start, most, least, forced)
    assert len(set(rows.tolist())) == len(rows)
    assert forced[0] in rows
    for (first, stop), (a, b) in zip(pairwise(start.tolist()), pairwise(begins.tolist()), strict=True):
        own = ranked[first:stop].tolist()
        assert rows[a:b][:least].tolist() == own[:least]
        assert [own.index(row) for row in rows[a:b].tolist()] == sorted(own.index(row) for row in rows[a:b].tolist())
        assert b - a <= max(least, round(most * (stop - first) / len(ranked))) + 1
    if most >= len(ranked):
        assert sorted(rows.tolist()) == sorted(ranked.tolist())


@few
@given(sizes, st.integers(0, 99))
def test_a_level_shows_one_image_of_every_cell_that_has_any(count: list[int], seed: int) -> None:
    cell, _, _ = placed(count, seed)
    rank = priority(np.concatenate([[0], np.cumsum(count)]))
    top, levels = coarsest(cell, rank, TILE)
    assert cell.max() >> (levels - 1) < TILE
    for level in range(levels):
        at = cell >> (levels - 1 - level)
        shown = at[top <= level]
        assert len(np.unique(shown, axis=0)) == len(shown)
        assert {*map(tuple, shown.tolist())} == {*map(tuple, at.tolist())}
        for x, y in shown:
            there = np.flatnonzero((at == (x, y)).all(1))
            assert top[there[rank[there].argmin()]] <= level


def test_tiles_hold_all_images_once(tmp_path: Path) -> None:
    pictures = np.empty((150, SIDE, SIDE, 3), np.uint8)
    pictures[:] = np.arange(50, 200, dtype=np.uint8)[:, None, None, None]
    cell, _, _ = placed([100, 40, 10], 0)
    top, levels = coarsest(cell, priority(np.array([0, 100, 140, 150])), TILE)
    written = draw_tiles(pictures, cell, top, levels, tmp_path)
    assert len(list(tmp_path.rglob("*.jpg"))) == written
    levels_seen = []
    for file in (tmp_path / str(levels - 1)).iterdir():
        tile = simplejpeg.decode_jpeg(file.read_bytes(), "GRAY")[..., 0]
        middles = tile[SIDE // 2 :: SIDE, SIDE // 2 :: SIDE]
        levels_seen += middles[middles > 25].tolist()
    assert len(levels_seen) == 150
    assert np.abs(np.sort(levels_seen).astype(int) - np.arange(50, 200)).max() <= 2  # of JPEG
    with_pictures = simplejpeg.decode_jpeg((tmp_path / "0/0-0.jpg").read_bytes(), "GRAY")[..., 0]
    assert (with_pictures[SIDE // 2 :: SIDE, SIDE // 2 :: SIDE] > 25).sum() == (top == 0).sum()
    assert brightness(pictures).tolist() == pytest.approx(np.arange(50, 200) / 255)


def full_disk(_at: int, _stored: bytes) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_small_pictures_in_any_order_and_grey_where_one_cannot_be_read(tmp_path: Path) -> None:
    shards = ShardSet.open(make_pictures(tmp_path / "set", [5, 4]))
    row = shards.sidecar(0).slice(2, 1).to_pylist()[0]
    with (tmp_path / "set/00000.tar").open("r+b") as tar:
        tar.seek(row["offset"])
        tar.write(b"damage")
    whole = small_pictures(shards, list(range(9)), tmp_path, lambda _at, _stored: None)
    stored: dict[int, bytes] = {}
    some = small_pictures(shards, [7, 2, 0], tmp_path, stored.__setitem__)
    assert sorted(stored) == [0, 2]  # the one in between cannot be read
    assert stored[0] == shards.read(1, shards.sidecar(1).slice(2, 1).to_pylist()[0])
    assert np.array_equal(some, whole[[7, 2, 0]])
    with pytest.raises(OSError, match="No space left"):  # and is no grey picture
        small_pictures(shards, [0], tmp_path, full_disk)
    assert (whole[2] == 128).all()
    assert whole[7].std() > 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["set"]


def test_columns_of_labels_and_numbers() -> None:
    names = [f"n{rank}" for rank in range(10) for _ in range(10 - rank)]
    found = labelled("label", [*names, ""])
    assert found.names == [f"n{rank}" for rank in range(8)]
    assert found.level.tolist() == [rank if rank < 8 else OTHER for rank in range(10) for _ in range(10 - rank)] + [
        NONE
    ]
    found = numbers("size", np.array([5.0, np.nan, 1.0, 3.0]), lambda value: f"{value:.0f} px")
    assert found.level.tolist() == [253, NONE, 0, 126]
    assert found.ends == ("1 px", "3 px", "5 px")
    assert numbers("size", np.full(2, np.nan), str).level.tolist() == [NONE, NONE]
    assert len(set(numbers("size", np.ones(4), str).level.tolist())) == 1


def test_clusters_are_called_by_the_words_that_they_have_in_common() -> None:
    texts = [["a red dog", "The dog, asleep", "dog 12"], ["my cat", "cat on mat", "wet mat"], ["", ""], ["alone"]]
    assert names(texts) == ["dog", "cat, mat", "", ""]


def test_foreign_text_stays_text(tmp_path: Path) -> None:
    """Captions, labels and sources are of the web: none of them may end a script or become markup."""
    from seer_pipe.report.atlas import write_atlas

    shards = ShardSet.open(make_pictures(tmp_path / "set", [8]))
    evil = "</script><script>alert(1)</script>\u2028<img src=x onerror=alert(1)>"
    table = shards.sidecar(0)
    table = table.append_column("caption", pa.array([evil] * 8)).append_column(
        "date", pa.array(["2020-02-03", None, "1580688000", "2020-06-31"] * 2)
    )
    put_sidecar(shards.store, shards.sidecars[0], table, int(shards.bytes[0]), shards.sha256[0])
    feature = np.random.default_rng(0).standard_normal((8, 4))
    write_embeddings(tmp_path / "e.parquet", [f"{n:06d}" for n in range(8)], ["00000.tar"] * 8, list(range(8)),
                     np.arange(8) % 2, feature)  # fmt: skip
    page = write_atlas(tmp_path, tmp_path / "atlas", str(tmp_path / "set"), embeddings=tmp_path / "e.parquet",
                       labels="caption")  # fmt: skip
    assert evil[:8] not in page.read_text().split('<script src="data.js">')[0]
    assert "alert(1)" not in page.read_text()
    assert "\u2028" not in (page.parent / "images/000.js").read_text()
    assert script(page, "images/000.js")["text"] == [evil] * 8
    columns = {column["id"]: column for column in script(page, "data.js")["columns"]}
    assert columns["date"]["ends"] == ["2020-02-03"] * 3
    assert columns["label"]["names"] == [evil]
