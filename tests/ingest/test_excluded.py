"""Samples that a person leaves out of training, beside those that are duplicates."""

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from ingest.tools.dedup import dedup
from ingest.tools.excluded import EXCLUDED_SCHEMA, exclude
from seer_pipe.errors import UserError
from seer_pipe.shards import EXCLUDED, FINGERPRINT_KEY, ShardSet, ShardWriter, write_manifest
from seer_pipe.store import open_store
from tests.ingest.helpers import seer_ingest
from tests.ingest.test_tools import encoded, make_set, picture


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Seven images in two shards; samples 2 and 5 have the bytes of sample 0."""
    images = [encoded(picture(0 if number in (2, 5) else number)) for number in range(7)]
    make_set(tmp_path / "set", [images[:4], [], images[4:]])
    return tmp_path / "set"


def excluded(root: Path) -> dict[str, tuple[int, int | None]]:
    rows = pq.read_table(root / EXCLUDED)
    assert rows.schema.equals(EXCLUDED_SCHEMA)
    assert rows["sample"].to_pylist() == sorted(set(rows["sample"].to_pylist()))
    assert rows.schema.metadata[FINGERPRINT_KEY].decode() == ShardSet.open(root).fingerprint
    return {row["key"]: (row["sample"], row["of"]) for row in rows.to_pylist()}


def test_lists_of_every_kind(root: Path, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("00002-000000\n\n00000-000001\n00000-000001\n")
    run = seer_ingest("exclude", root, "--keys", tmp_path / "keys.txt", "--json")
    assert (run.returncode, json.loads(run.stdout)) == (0, {"named": 2, "excluded": 2}), run.stderr
    assert excluded(root) == {"00000-000001": (1, None), "00002-000000": (4, None)}
    table = pa.table({"confidence": [0.5, 0.9], "key": ["00000-000003", "00002-000002"]})
    pq.write_table(table, tmp_path / "keys.parquet")
    pyarrow.csv.write_csv(table, tmp_path / "keys.csv")
    assert exclude(root, str(tmp_path / "keys.parquet")) == (2, 4)
    before = (root / EXCLUDED).read_bytes()
    run = seer_ingest("exclude", root, "--keys", tmp_path / "keys.csv")
    assert run.stdout == f"2 samples named, 4 excluded by now: {root / EXCLUDED}\n"
    assert (root / EXCLUDED).read_bytes() == before


def test_dedup_and_exclude_keep_what_the_other_found(root: Path, tmp_path: Path) -> None:
    repeats = {"00000-000002": (2, 0), "00002-000001": (5, 0)}
    (tmp_path / "keys.txt").write_text("00000-000000\n00000-000002\n")
    dedup(root, distance=0)
    assert excluded(root) == repeats
    by_hand = {"00000-000000": (0, None), "00000-000002": (2, None)}
    assert exclude(root, str(tmp_path / "keys.txt")) == (2, 3)
    assert excluded(root) == repeats | by_hand
    assert dedup(root, distance=0).same == 2  # the copy of what is excluded is a copy still
    assert excluded(root) == repeats | by_hand


def test_a_key_that_is_not_clear_excludes_nothing(root: Path, tmp_path: Path) -> None:
    keys = tmp_path / "keys.txt"
    keys.write_text("00000-000000\n" + "".join(f"x{number}\n" for number in range(5)))
    run = seer_ingest("exclude", root, "--keys", keys)
    assert (run.returncode, run.stdout) == (2, "")
    wanted = f"error: {keys}: 5 of 6 keys are of no sample of the set at {root}: 'x0', 'x1', 'x2', …\n"
    assert run.stderr == wanted
    assert not (root / EXCLUDED).exists()
    (tmp_path / "keys.csv").write_text("name\na\n")
    assert "no column 'key'; it has 'name'" in seer_ingest("exclude", root, "--keys", tmp_path / "keys.csv").stderr
    assert "no such file" in seer_ingest("exclude", root, "--keys", tmp_path / "none.txt").stderr


def test_shards_of_different_origin_may_use_the_same_keys(tmp_path: Path) -> None:
    store, paths = open_store(tmp_path / "set"), ["a/0.tar", "b/0.tar"]
    for path in paths:
        writer = ShardWriter(store, path)
        for key in "xy":
            writer.add(key, path.encode(), source="", width=1, height=1)
        writer.commit()
    write_manifest(store, paths)
    (tmp_path / "keys.txt").write_text("x\n")
    with pytest.raises(UserError, match=r"1 of 1 keys are of several samples; give their shards too.*'x'"):
        exclude(tmp_path / "set", str(tmp_path / "keys.txt"))
    (tmp_path / "keys.csv").write_text("shard,key\nb/0.tar,x\na/0.tar,y\n")
    assert exclude(tmp_path / "set", str(tmp_path / "keys.csv")) == (2, 2)
    assert pq.read_table(tmp_path / "set" / EXCLUDED)["sample"].to_pylist() == [1, 2]
    (tmp_path / "keys.csv").write_text("shard,key\nb/1.tar,x\n")
    with pytest.raises(UserError, match=r"'b/1\.tar/x'"):
        exclude(tmp_path / "set", str(tmp_path / "keys.csv"))


def test_a_list_of_another_set_is_not_touched(root: Path, tmp_path: Path) -> None:
    (tmp_path / "keys.txt").write_text("00000-000000\n")
    exclude(root, str(tmp_path / "keys.txt"))
    before = (root / EXCLUDED).read_bytes()
    write_manifest(open_store(root), ["00002.tar", "00000.tar"])
    for again in (lambda: exclude(root, str(tmp_path / "keys.txt")), lambda: dedup(root)):
        with pytest.raises(UserError, match="was made when the set was another one; delete it"):
            again()
    assert (root / EXCLUDED).read_bytes() == before


@pytest.mark.slow
def test_on_s3(s3: Any, tmp_path: Path) -> None:
    s3.create_bucket(Bucket="excluded")
    make_set("s3://excluded/set", [[encoded(picture(0)), encoded(picture(1))]])
    s3.put_object(Bucket="excluded", Key="keys.txt", Body=b"00000-000001\n")
    assert exclude("s3://excluded/set", "s3://excluded/keys.txt") == (1, 1)
    assert open_store("s3://excluded/set").size(EXCLUDED)
