"""The plan: units cut the same way however the list arrives, duplicates by rule, other work refused."""

import json
from array import array
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from ingest.budget import Lease
from ingest.plan import ABOUT, DUPLICATE, UNIT_BYTES, cut, hash64, open_plan, prepare, repeated
from ingest.sources import Plain, Row
from seer_pipe.errors import UserError
from seer_pipe.store import open_store

batches = st.lists(st.lists(st.integers(0, 2 * UNIT_BYTES), max_size=20), max_size=20)


class Listed(Plain):
    """A source that only lists."""

    unique = True

    def __init__(self, *names: str) -> None:
        self.identity = {"kind": "listed", "names": list(names)}

    def tables(self) -> Iterator[pa.Table]:
        names = self.identity["names"]
        yield pa.table({"source": pa.array(names, pa.string()), "problem": pa.nulls(len(names), pa.string())})

    async def fetch(self, row: Row, lease: Lease) -> bytes:
        raise AssertionError("only listed")


def tables(batches: list[list[int]]) -> Iterator[pa.Table]:
    for sizes in batches:
        names = pa.array(map(str, sizes), pa.string())
        yield pa.table({"source": names, "size": pa.array(sizes, pa.int64())})


@given(batches, st.integers(1, 30))
def test_units_depend_on_the_rows_alone(batches: list[list[int]], unit: int) -> None:
    sizes = [size for batch in batches for size in batch]
    units = [table["size"].to_pylist() for table in cut(tables(batches), unit)]
    assert [size for part in units for size in part] == sizes
    assert units == [table["size"].to_pylist() for table in cut(tables([sizes]), unit)]
    for part in units[:-1]:
        assert len(part) == unit or sum(part) >= UNIT_BYTES
    for part in units:
        assert part
        assert len(part) <= unit
        assert sum(part[:-1]) < UNIT_BYTES


@given(st.lists(st.text("ab", max_size=3)))
def test_all_but_the_first_are_repeated(texts: list[str]) -> None:
    flags = repeated(array("Q", map(hash64, texts)))
    assert flags.tolist() == [text in texts[:place] for place, text in enumerate(texts)]


def test_a_plan_is_made_once_and_read_again(tmp_path: Path) -> None:
    store = open_store(tmp_path)
    source = Listed("a", "b", "a", "c", "b")
    plan, resumed = prepare(source, store, {"quality": 90}, 2)
    assert not resumed
    again, resumed = prepare(source, store, {"quality": 90}, 2)
    assert resumed
    for found in (plan, again):
        assert (found.inputs, found.units) == (5, 3)
        rows = [row for unit in range(3) for row in found.rows(unit)]
        assert [(row["source"], row[DUPLICATE]) for row in rows] == [
            ("a", False), ("b", False), ("a", True), ("c", False), ("b", True),
        ]  # fmt: skip
        assert [found.size(unit) for unit in range(3)] == [2, 2, 1]


def test_threads_read_one_plan_at_once(tmp_path: Path) -> None:
    plan, _ = prepare(Listed(*map(str, range(400))), open_store(tmp_path), {}, 2)
    with ThreadPoolExecutor(8) as pool:
        for _ in range(5):
            units = list(pool.map(plan.rows, range(200)))
            assert [row["source"] for unit in units for row in unit] == [*map(str, range(400))]


@pytest.mark.parametrize(
    ("source", "settings", "message"),
    [
        (Listed("a"), {"quality": 80}, "quality (90, now 80)"),
        (Listed("b"), {"quality": 90}, "names (['a'], now ['b'])"),
        (Listed("a"), {"quality": 90, "new": 1}, "new (None, now 1)"),
    ],
)
def test_other_work_is_refused(tmp_path: Path, source: Listed, settings: dict[str, Any], message: str) -> None:
    store = open_store(tmp_path)
    prepare(Listed("a"), store, {"quality": 90}, 2)
    with pytest.raises(UserError) as error:
        prepare(source, store, settings, 2)
    assert message in str(error.value)


def test_nothing_to_do_foreign_sets_and_damaged_records_are_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="empty"):
        prepare(Listed(), open_store(tmp_path / "empty"), {}, 2)
    foreign = open_store(tmp_path / "foreign")
    foreign.put("manifest.parquet", b"")
    with pytest.raises(UserError, match="made in another way"):
        prepare(Listed("a"), foreign, {}, 2)
    damaged = open_store(tmp_path / "damaged")
    for content in (b"{", b"[]", b"{}", b"\xff"):
        damaged.put(ABOUT, content)
        with pytest.raises(UserError, match="not readable"):
            open_plan(damaged)
    for version in (1, 99):
        damaged.put(ABOUT, json.dumps({"version": version}).encode())
        with pytest.raises(UserError, match=f"version {version}"):
            open_plan(damaged)
