"""--shuffle: every input once, the same way each time, whatever the memory, the source and the kills."""

import json
import tarfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.shuffle import shuffled
from tests.ingest.helpers import files, seer_ingest, stored
from tests.ingest.test_archive import write_tar
from tests.ingest.web import jpeg


@settings(max_examples=25)
@given(st.lists(st.integers(0, 60), min_size=1, max_size=6).filter(any), st.integers(1, 200))
def test_it_is_one_permutation_however_little_is_held(
    tmp_path_factory: pytest.TempPathFactory, groups: list[int], rows: int
) -> None:
    folder = tmp_path_factory.mktemp("shuffle")
    total = sum(groups)
    table = pa.table({"source": [str(number) for number in range(total)], "size": range(total)})
    with pq.ParquetWriter(folder / "inputs", table.schema) as writer:
        for start, size in zip(np.cumsum([0, *groups]).tolist(), groups, strict=False):
            writer.write_table(table.slice(start, size), row_group_size=max(1, size))
    small, whole = (pa.concat_tables(shuffled(folder / "inputs", folder, held)) for held in (rows, 10**6))
    assert small.schema == table.schema
    assert small["size"].to_pylist() == whole["size"].to_pylist() == [int(name) for name in whole["source"].to_pylist()]
    assert sorted(small["size"].to_pylist()) == list(range(total))
    assert [path.name for path in folder.iterdir()] == ["inputs"]


def test_the_order_of_the_inputs_is_gone(tmp_path: Path) -> None:
    pq.write_table(pa.table({"place": range(20_000)}), tmp_path / "inputs", row_group_size=3000)
    places = np.concatenate([part["place"].to_numpy() for part in shuffled(tmp_path / "inputs", tmp_path, 4000)])
    for distance in (1, 7, 1000):
        assert abs(np.corrcoef(places[distance:], places[:-distance])[0, 1]) < 0.03
    assert abs(np.corrcoef(places, np.arange(20_000))[0, 1]) < 0.03


@pytest.mark.parametrize("kind", ["folder", "archive"])
def test_sorted_inputs_make_mixed_shards_the_same_after_a_break(tmp_path: Path, kind: str) -> None:
    data = {f"{label}/{number:02d}.jpg": jpeg(100 * ord(label) + number) for label in "ab" for number in range(12)}
    for label in "ab":
        (tmp_path / "in" / label).mkdir(parents=True)
        if kind == "archive":
            members = [(name, tarfile.REGTYPE, image) for name, image in data.items() if name[0] == label]
            write_tar(tmp_path / "in" / f"{label}.tar", members)
    if kind == "folder":
        for name, image in data.items():
            (tmp_path / "in" / name).write_bytes(image)
    command = (kind, tmp_path / "in", "--unit", 6, "--workers", 1)
    assert seer_ingest(*command, "--shuffle", "--out", tmp_path / "out").returncode == 0
    rows = stored(tmp_path / "out")
    labels = "".join(
        row["source"].split("/")[-2 if kind == "folder" else -1 - row["source"].count("/")][0] for row in rows
    )
    assert sorted(row["source"].removeprefix("a.tar/").removeprefix("b.tar/") for row in rows) == sorted(data)
    assert all(len(set(labels[start : start + 6])) == 2 for start in range(0, 24, 6))
    before = files(tmp_path / "out")
    for name in ("manifest.parquet", "00002.parquet", "00002.tar"):
        (tmp_path / "out" / name).unlink()
    refused = seer_ingest(*command, "--out", tmp_path / "out")
    assert refused.returncode == 2
    assert "begun with another shuffle (True, now None)" in refused.stderr
    assert seer_ingest(*command, "--shuffle", "--out", tmp_path / "out").returncode == 0
    assert files(tmp_path / "out") == before


def test_where_it_is_off_nothing_tells_of_it(tmp_path: Path) -> None:
    """So that a run of an earlier version can be resumed."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jpg").write_bytes(jpeg(1))
    assert seer_ingest("folder", tmp_path / "in", "--workers", 1, "--out", tmp_path / "out").returncode == 0
    assert "shuffle" not in json.loads((tmp_path / "out" / "ingest.json").read_text())["settings"]
