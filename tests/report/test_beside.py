"""Two sets on one map: what both have stands once, by its bytes, and lists are of the set that they are for."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.tools.excluded import exclude
from seer_pipe.errors import UserError
from seer_pipe.evaluate.embeddings import DATA, IDENTITY
from seer_pipe.quickstart.draw import KINDS, picture
from seer_pipe.report.atlas import write_atlas, write_keys
from seer_pipe.report.beside import Pair, partners
from seer_pipe.shards import ShardSet, ShardWriter, put_sidecar, write_manifest
from seer_pipe.store import open_store
from tests.browser import SCREENS, assert_no_violations, assert_readable, keep_screenshot
from tests.report.test_atlas import script, write_embeddings

FIRST = [*range(30), 7]  # numbers of pictures; one is there twice
SECOND = [*range(20, 44), 7]
WIDTH = 8


def write_set(root: Path, numbers: list[int], name: str) -> Path:
    """A set of drawn pictures, whose keys say nothing of which they are, with embeddings that do."""
    store, kinds = open_store(root), sorted(KINDS)
    writer = ShardWriter(store, "00000.tar")
    for at, number in enumerate(numbers):
        buffer = io.BytesIO()
        image = picture(kinds[number % len(kinds)], number)
        image.save(buffer, "JPEG")
        writer.add(f"{name}{at:03d}", buffer.getvalue(), source=f"{name}.example/{number}.jpg",
                   width=image.width, height=image.height)  # fmt: skip
    writer.commit()
    write_manifest(store, ["00000.tar"])
    feature = (
        np.eye(WIDTH)[np.array(numbers) % 4] + 0.01 * np.random.default_rng(0).standard_normal((60, WIDTH))[numbers]
    )
    write_embeddings(root.with_suffix(".parquet"), [f"{name}{at:03d}" for at in range(len(numbers))],
                     ["00000.tar"] * len(numbers), list(range(len(numbers))), None, feature)  # fmt: skip
    return root


@pytest.fixture
def sets(tmp_path: Path) -> tuple[Path, Path]:
    return write_set(tmp_path / "first", FIRST, "a"), write_set(tmp_path / "second", SECOND, "b")


@given(st.lists(st.integers(0, 5)), st.lists(st.integers(0, 5)))
def test_partners_are_equal_and_as_many_as_there_can_be(first: list[int], second: list[int]) -> None:
    found = partners(np.array(first, np.uint64), np.array(second, np.uint64)).tolist()
    assert len(found) == len(first)
    paired = [(one, at) for one, at in zip(first, found, strict=True) if at >= 0]
    assert all(second[at] == one for one, at in paired)
    assert len({at for _, at in paired}) == len(paired)
    for value in range(6):
        assert sum(one == value for one, _ in paired) == min(first.count(value), second.count(value))


def atlas(sets: tuple[Path, Path], out: Path) -> Path:
    """By k-means; embeddings of the second set where they would be made."""
    first, second = sets
    run = first.parent
    own = run / f"embeddings-{ShardSet.open(second).fingerprint[:12]}.parquet"
    second.with_suffix(".parquet").rename(own)
    return write_atlas(run, out, str(first), beside=str(second), embeddings=first.with_suffix(".parquet"), clusters=4)


def test_what_came_and_what_went(sets: tuple[Path, Path], tmp_path: Path) -> None:
    page = atlas(sets, tmp_path / "atlas")
    about, images = script(page, "data.js"), script(page, "images/000.js")
    assert [one["name"] for one in about["sets"]] == ["first", "second"]
    assert about["images"] == len(images["key"]) == 44 + 1  # each once, and the one that the first has twice
    whole = np.array(about["parts"]).reshape(-1, 3)
    assert whole.sum(0).tolist() == [19, 10 + 2, 14]  # both copies of the one are in both
    assert whole.sum(1).tolist() == about["size"]

    places = [(about["shards"][shard][0], key, copy) for key, shard, copy in zip(
        images["key"], images["shard"], images["copy"], strict=True)]  # fmt: skip
    assert {key for which, key, _ in places if which == 0} == {f"a{at:03d}" for at in range(len(FIRST))}
    pairs = {key: copy[0] for which, key, copy in places if copy}
    assert {FIRST[int(one[1:])] for one in pairs} == {*range(20, 30), 7}
    assert all(FIRST[int(one[1:])] == SECOND[int(other[1:])] for one, other in pairs.items())
    assert all(about["shards"][copy[1]] == [1, "00000.tar"] for _, _, copy in places if copy)
    assert {SECOND[int(key[1:])] for which, key, _ in places if which == 1} == set(range(30, 44))


def test_lists_are_of_the_set_that_they_are_for(sets: tuple[Path, Path], tmp_path: Path) -> None:
    page = atlas(sets, tmp_path / "atlas")
    about = script(page, "data.js")
    for folder, names, numbers in zip(("keys", "keys-beside"), about["sets"], (FIRST, SECOND), strict=True):
        found = []
        for cluster in about["cluster"]:
            with (page.parent / folder / f"{cluster}.csv").open() as lines:
                rows = list(csv.DictReader(lines))
            assert write_keys(Path(names["names"]), [cluster], tmp_path / "keys.csv") == len(rows)
            assert {row["shard"] for row in rows} == {"00000.tar"}
            found += [row["key"] for row in rows]
        assert sorted(int(key[1:]) for key in found) == list(range(len(numbers)))
    cluster = about["cluster"][0]
    left = exclude(str(sets[1]), str(page.parent / f"keys-beside/{cluster}.csv"))
    assert left[0] == write_keys(page.parent / "clusters-beside.parquet", [cluster], tmp_path / "keys.csv")
    assert (page.parent / "centroids.safetensors").exists()


def test_a_file_of_embeddings_says_which_set_it_is_of(sets: tuple[Path, Path], tmp_path: Path) -> None:
    first, file = str(sets[0]), sets[0].with_suffix(".parquet")

    def said(name: str, about: dict[bytes, bytes]) -> Path:
        pq.write_table(pq.read_table(file).replace_schema_metadata(about), tmp_path / name)
        return tmp_path / name

    def write(beside: Path) -> Path:
        return write_atlas(tmp_path, tmp_path / "atlas", first, beside=str(beside), embeddings=file, clusters=4)

    itself = script(write(said("itself.parquet", {DATA: first.encode()})), "data.js")
    assert np.array(itself["parts"]).reshape(-1, 3).sum(0).tolist() == [0, len(FIRST), 0]
    assert [one["name"] for one in itself["sets"]] == [first, first]
    with pytest.raises(UserError, match="does not say which shard set"):
        write(file)
    fingerprint = ShardSet.open(first).fingerprint
    with pytest.raises(UserError, match=r"other\.parquet: of other weights than .*first\.parquet"):
        write(said("other.parquet", {DATA: first.encode(), IDENTITY: f"weights {fingerprint} choice".encode()}))


def test_a_column_that_one_set_lacks_is_null_there(sets: tuple[Path, Path]) -> None:
    pair = Pair(*map(ShardSet.open, sets))
    store, path = pair.sets[1].store, pair.sets[1].sidecars[0]
    table = pair.sets[1].sidecar(0)
    put_sidecar(store, path, table.append_column("txt", pa.array(["drawn"] * len(SECOND))), 1, "0")
    pair = Pair(*map(ShardSet.open, sets))
    assert [pair.sidecar(shard, ["txt", "key"])["txt"].to_pylist() for shard in (0, 1)] == [
        [None] * len(FIRST), ["drawn"] * len(SECOND)
    ]  # fmt: skip
    row = pair.sidecar(1).slice(3, 1).to_pylist()[0]
    assert pair.read(1, row) == pair.sets[1].read(0, row)


@pytest.mark.browser
def test_the_page_of_two_sets(browser: Any, sets: tuple[Path, Path], tmp_path: Path) -> None:
    """Coloured by set at once; what only one has is shown and listed, for each set its own keys."""
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.select import Select

    page = atlas(sets, tmp_path / "atlas")
    for width, height, scheme in SCREENS:
        assert_readable(browser, page, width, height, scheme)
        legend = [line.text for line in browser.find_elements(By.CSS_SELECTOR, "#legend div")]
        assert legend == ["only first", "both", "only second"]
        boxes = [browser.find_element(By.ID, which).rect for which in ("legend", "zooms")]
        aside, under = (boxes[0][at] + boxes[0][size] <= boxes[1][at] for at, size in (("x", "width"), ("y", "height")))
        assert aside or under
        Select(browser.find_element(By.ID, "part")).select_by_visible_text("in both")
        assert_no_violations(browser)
        keep_screenshot(browser, f"beside-{width}-{scheme}")
    assert browser.find_element(By.ID, "about").text.count("12 in both, 19 only in first, 14 only in second") == 1
    assert browser.find_element(By.ID, "split").text == "12 in both, 0 only in first, 0 only in second"
    selected = "[...mask.keys()].filter(i => mask[i])"
    lists = [browser.execute_script(f"return listOf({selected}, {which})") for which in (0, 1)]
    keys = [[row["key"] for row in csv.DictReader(io.StringIO(text))] for text in lists]
    assert sorted(FIRST[int(key[1:])] for key in keys[0]) == [7, 7, *range(20, 30)]
    assert sorted(SECOND[int(key[1:])] for key in keys[1]) == [7, *range(20, 30)]
    (tmp_path / "beside.csv").write_text(lists[1])
    assert exclude(str(sets[1]), str(tmp_path / "beside.csv"))[0] == 11

    Select(browser.find_element(By.ID, "part")).select_by_visible_text("only in second")
    assert browser.find_element(By.ID, "said").text.startswith("14 images of ")
    buttons = browser.find_elements(By.CSS_SELECTOR, "#download, #download-beside")
    assert [one.text for one in buttons] == ["Download the keys of second"]
    assert "seer-ingest exclude" in browser.find_element(By.ID, "selection").text
    assert str(sets[1]) in browser.find_element(By.ID, "selection").text
    Select(browser.find_element(By.ID, "order")).select_by_visible_text("most only in second first")
    shares = browser.execute_script("return matching.map(c => A.came[c])")
    assert shares == sorted(shares, reverse=True)
