"""Images in columns of Parquet, Arrow, JSON Lines: every form of them, what is broken, little memory, exact resumes."""

import asyncio
import base64
import gzip
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ingest.budget import Budget
from ingest.reasons import UnfetchedError
from ingest.sources.columns import open_columns
from ingest.sources.parquet import ParquetSource, RowReader
from seer_pipe.errors import UserError
from seer_pipe.shards import ShardSet
from tests.ingest.helpers import COMMAND, files, rejected, seer_ingest, stored
from tests.ingest.test_run import kill_and_finish
from tests.ingest.web import jpeg

STRUCT = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
LARGE = pa.struct([("bytes", pa.large_binary()), ("path", pa.large_string())])
CODED = pa.dictionary(pa.int32(), pa.binary())
BYTES = [pa.binary(), pa.large_binary(), pa.binary_view(), CODED]
TEXT = [pa.string(), pa.large_string()]


def fetched(where: Path | str, column: str = "image", keep: tuple[str, ...] = ()) -> list[bytes | str]:
    """Of every row the image, or the reason why there is none."""

    async def one(source: ParquetSource, row: dict[str, object]) -> bytes | str:
        try:
            return await source.fetch(row, await Budget(1 << 30).admit())
        except UnfetchedError as error:
            return f"{error.reason}: {error.detail}"

    async def all_of(source: ParquetSource) -> list[bytes | str]:
        async with source:
            rows = [row for table in source.tables() for row in table.to_pylist()]
            return [await one(source, rows[number]) for number in source.fetch_order(rows)]

    return asyncio.run(all_of(ParquetSource(str(where), column, keep, 1 << 20)))


def write(path: Path, table: pa.Table, rows: int = 2) -> Path:
    """In groups of so many rows."""
    if path.suffix == ".parquet":
        pq.write_table(table, path, row_group_size=rows)
    elif path.suffix == ".feather":
        pyarrow.feather.write_feather(table, path, chunksize=rows)
    else:
        new = pa.ipc.new_stream if "stream" in path.name else pa.ipc.new_file
        with pa.OSFile(str(path), "wb") as file, new(file, table.schema) as writer:
            writer.write_table(table, max_chunksize=rows)
    return path


@pytest.mark.parametrize("kind", [STRUCT, LARGE, *BYTES, *TEXT], ids=str)
@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a-stream.arrow", "a.feather"])
def test_an_image_is_bytes_or_base64_or_a_structure_with_bytes(tmp_path: Path, kind: pa.DataType, name: str) -> None:
    if pa.types.is_dictionary(kind) and name.endswith(".parquet"):
        kind = pa.dictionary(pa.int32(), pa.string())  # Parquet keeps no other
    data: list[object] = [b"one", b"two" * 9, None, b"", b"five"]
    text = kind in TEXT or (pa.types.is_dictionary(kind) and pa.types.is_string(kind.value_type))
    if text:
        data = [value if value is None else base64.b64encode(value).decode() for value in data]
    if pa.types.is_struct(kind):
        data = [value and {"bytes": value, "path": "x.jpg"} for value in data]
        data[3] = {"bytes": None, "path": "x.jpg"}
    column = pa.array(data, kind.value_type).cast(kind) if pa.types.is_dictionary(kind) else pa.array(data, kind)
    empty = "empty: no bytes, only a path: x.jpg" if pa.types.is_struct(kind) else b""
    path = write(tmp_path / name, pa.table({"n": range(5), "Image": column}))
    assert fetched(path) == [b"one", b"two" * 9, "empty: null", empty, b"five"]


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz", "a.jsonl.zst"])
def test_json_lines(tmp_path: Path, name: str) -> None:
    encoded = base64.b64encode(b"\xff\xfe~?one").decode()
    lines = [
        json.dumps({"image": encoded}),
        json.dumps({"image": {"bytes": encoded.replace("+", "-").replace("/", "_").rstrip("="), "path": None}}),
        json.dumps({"IMAGE": f"data:image/png;base64,{encoded}"}),
        "",
        "{broken",
        "[1]",
        json.dumps({"image": "no base64!"}),
        json.dumps({"image": 7}),
        json.dumps({"other": 7}),
        json.dumps({"image": None}),
    ]
    data = "\ufeff" + "\n".join(lines)
    path = tmp_path / name
    codec = {"gz": gzip.compress, "zst": pa.Codec("zstd").compress}.get(path.suffix[1:], bytes)
    path.write_bytes(bytes(codec(data.encode())))
    one = b"\xff\xfe~?one"
    images, rest = fetched(path)[:3], [str(problem) for problem in fetched(path)[3:]]
    assert images == [one] * 3
    assert [problem.split(":")[0] for problem in rest] == ["bad_row"] * 4 + ["empty"] * 2
    assert "no JSON" in rest[0]
    assert rest[1].endswith("no JSON object")


def test_a_column_within_structures_and_columns_that_are_none(tmp_path: Path) -> None:
    photo = pa.array([{"image": {"bytes": b"x", "path": "p"}, "n": 3}])
    path = write(tmp_path / "a.parquet", pa.table({"photo": photo, "n": [1], "many": [[b"x"]]}))
    assert fetched(path, "photo.image", ("photo.image.path", "n")) == [b"x"]
    assert fetched(path, "PHOTO.image.bytes") == [b"x"]
    (tmp_path / "b.jsonl").write_text('{"photo": {"image": {"bytes": "eA=="}}}')
    assert fetched(tmp_path / "b.jsonl", "photo.image") == [b"x"]
    for column, message in {
        "image": "a.parquet: no column 'image'; it has 'photo', 'n', 'many'",
        "photo.jpg": "no column 'jpg'; it has 'image', 'n'",
        "n": "column 'n' is int64: an image is bytes, base64, or a structure with bytes",
        "many": "column 'many' is list<.*: an image is bytes",
    }.items():
        with pytest.raises(UserError, match=message):
            fetched(path, column)
    with pytest.raises(UserError, match=r"b.jsonl: no column 'image'; it has 'photo'"):
        fetched(tmp_path / "b.jsonl")


@settings(max_examples=25)
@given(st.lists(st.integers(0, 5), min_size=1, max_size=5).filter(any), st.data())
def test_rows_are_found_in_any_order(
    tmp_path_factory: pytest.TempPathFactory, groups: list[int], data: st.DataObject
) -> None:
    folder, total = tmp_path_factory.mktemp("rows"), sum(groups)
    table = pa.table({"image": [b"%d" % row for row in range(total)]})
    places = [(group, inside) for group, rows in enumerate(groups) for inside in range(rows)]
    starts = np.cumsum([0, *groups]).tolist()
    with (
        pq.ParquetWriter(folder / "a.parquet", table.schema) as parquet,
        pa.OSFile(str(folder / "a.arrow"), "wb") as file, pa.ipc.new_stream(file, table.schema) as stream,
    ):  # fmt: skip
        for start, rows in zip(starts, groups, strict=False):
            parquet.write_table(table.slice(start, rows), row_group_size=max(1, rows))
            stream.write_batch(table.slice(start, rows).combine_chunks().to_batches()[0] if rows else
                                   pa.record_batch({"image": pa.array([], pa.binary())}))  # fmt: skip
    order = data.draw(st.lists(st.sampled_from(places), max_size=20))
    for name in ("a.parquet", "a.arrow"):
        reader = RowReader(open_columns(str(folder / name), "image", []))
        assert [reader.read(place, 9) for place in order] == [b"%d" % (starts[g] + i) for g, i in order]
        reader.close()
    rows = [row for t in ParquetSource(str(folder / "*.parquet"), "image", (), 9).tables() for row in t.to_pylist()]
    if (folder / "a.parquet").stat().st_size:
        assert [(row["group"], row["inside"]) for row in rows if row["problem"] is None] == places
        assert [row["source"] for row in rows] == [f"a.parquet/{row}" for row in range(total)]


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow"])
def test_a_group_that_is_the_whole_file_is_not_held_in_memory(tmp_path: Path, name: str) -> None:
    table = pa.table({"image": [np.random.default_rng(row).bytes(1 << 20) for row in range(40)]})
    if name == "a.parquet":
        pq.write_table(table, tmp_path / name, row_group_size=40, write_batch_size=4)  # images of a page
    else:
        write(tmp_path / name, table, rows=40)
    del table
    held, before = [], pa.total_allocated_bytes()
    reader = RowReader(open_columns(str(tmp_path / name), "image", []))
    for row in range(40):
        assert len(reader.read((0, row), 1 << 20)) == 1 << 20
        held.append(pa.total_allocated_bytes() - before)
    reader.close()
    assert max(held) < 24 << 20  # 17 measured, of 40


def test_kept_columns_are_as_they_are_where_all_files_agree(tmp_path: Path) -> None:
    coded = pa.array(["a"]).dictionary_encode()
    for name, kept in {"0.parquet": coded, "1.arrow": coded, "2.feather": pa.array(["b"])}.items():
        write(tmp_path / name, pa.table({"image": [b"x"], "c": kept}))
    agreeing = ParquetSource(str(tmp_path / "[01].*"), "image", ("c",), 9)
    assert [field.type for field in agreeing.kept] == [coded.type]
    (tmp_path / "3.jsonl").write_text('{"image": "eA==", "c": "d"}')
    source = ParquetSource(str(tmp_path), "image", ("c",), 9)
    assert [field.type for field in source.kept] == [pa.string()]
    assert [row for table in source.tables() for row in table["kept:c"].to_pylist()] == ["a", "a", "b", "d"]


def test_damage_costs_what_is_behind_it(tmp_path: Path) -> None:
    images = [np.random.default_rng(row).bytes(40_000) for row in range(60)]
    whole = write(tmp_path / "whole.parquet", pa.table({"image": images}), rows=20).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[:-100])
    (tmp_path / "flipped.parquet").write_bytes(whole[:4] + bytes(64) + whole[68:])  # the first page's header
    lines = "".join(json.dumps({"image": base64.b64encode(image).decode()}) + "\n" for image in images)
    (tmp_path / "cut.jsonl.gz").write_bytes(gzip.compress(lines.encode())[:-90_000])
    assert fetched(tmp_path / "whole.parquet") == images
    (cut,) = fetched(tmp_path / "cut.parquet")
    assert str(cut).startswith("unreadable: damaged from row 0 on: ")
    flipped = fetched(tmp_path / "flipped.parquet")
    assert flipped[20:] == images[20:]
    assert all(str(problem).startswith("unreadable: ") for problem in flipped[:20])
    *rows, last = fetched(tmp_path / "cut.jsonl.gz")
    assert rows == images[: len(rows)]
    assert len(rows) > 20
    assert str(last).startswith(f"unreadable: damaged from row {len(rows)} on: ")


def make(folder: Path, per_file: int = 12) -> None:
    """Three files of different kinds, with repeated, null and broken images, and columns of many types."""
    folder.mkdir()
    for number, name in enumerate(["0.parquet", "1.arrow", "2-stream.arrow"]):
        images: list[bytes | None] = [jpeg(per_file * number + row) for row in range(per_file)]
        images[3], images[5] = None, b"<html>"
        table = pa.table({
            "image": pa.array([{"bytes": image, "path": f"{row}.jpg"} for row, image in enumerate(images)], STRUCT),
            "label": pa.array([row % 3 for row in range(per_file)], pa.int8()),
            "caption": pa.array([f"caption {row}" for row in range(per_file)]).dictionary_encode(),
            "tags": [[f"t{row}", "é"] for row in range(per_file)],
            "about": [{"who": "me", "when": row} for row in range(per_file)],
            "width": pa.array([str(row) for row in range(per_file)], pa.large_string()),
        })  # fmt: skip
        write(folder / name, table, rows=5)


KEEP = "label,caption,tags,about,width,image.path"


def test_a_whole_run_and_the_same_after_a_break(tmp_path: Path) -> None:
    make(tmp_path / "in")
    words = ("parquet", tmp_path / "in", "--unit", 7, "--workers", 1,
             "--keep-columns", KEEP, "--out", tmp_path / "out")  # fmt: skip
    run = seer_ingest(*words)
    assert run.returncode == 0, run.stderr
    assert "36 inputs: 30 stored, 6 rejected" in run.stdout
    row = stored(tmp_path / "out")[5]
    assert (row["source"], row["label"], row["caption"], row["tags"]) == ("0.parquet/7", 1, "caption 7", ["t7", "é"])
    assert (row["about"], row["input_width"], row["image.path"]) == ({"who": "me", "when": 7}, "7", "7.jpg")
    assert rejected(tmp_path / "out") == {
        f"{name}/{row}": reason
        for name in ("0.parquet", "1.arrow", "2-stream.arrow")
        for row, reason in ((3, "empty"), (5, "not_an_image"))
    }
    shards = ShardSet.open(tmp_path / "out")
    assert shards.read(0, shards.sidecar(0).to_pylist()[0]) == jpeg(0)
    before = files(tmp_path / "out")
    for gone in ("manifest.parquet", "00002.parquet", "00004.parquet", "00004.tar"):
        (tmp_path / "out" / gone).unlink()
    assert seer_ingest(*words).returncode == 0
    assert files(tmp_path / "out") == before
    other = seer_ingest(*words[:-4], "--keep-columns", "label", *words[-2:])
    assert (other.returncode, other.stdout) == (2, "")
    assert "was begun with another keep_columns" in other.stderr


@pytest.mark.slow
@pytest.mark.parametrize("options", [[], ["--shuffle"]])
def test_killed_runs_end_as_if_they_had_not_been(tmp_path: Path, options: list[str]) -> None:
    make(tmp_path / "in", per_file=150)

    def command(out: Path) -> list[str]:
        words = [*COMMAND, "parquet", tmp_path / "in", "--out", out, "--unit", 20, "--keep-columns", KEEP, *options]
        return list(map(str, words))

    whole, killed = tmp_path / "whole", tmp_path / "killed"
    kill_and_finish(command(whole), whole, times=0, seed=0, longest=0)
    kill_and_finish(command(killed), killed, times=8, seed=1, longest=2.5)
    assert files(killed) == files(whole)
    assert len(ShardSet.open(killed)) == 3 * 148
