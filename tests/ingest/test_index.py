"""Sets that are used where they stand: no byte of them changes, and what is not fit is left out."""

import io
import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from ingest.sources.webdataset import is_shard_set
from seer_pipe.data.order import Plan
from seer_pipe.data.stream import Stream
from seer_pipe.shards import ShardSet
from seer_pipe.train.loop import train
from tests.ingest.helpers import files, rejected, seer_ingest
from tests.ingest.test_webdataset import about, png, write_tar
from tests.ingest.web import Web, jpeg
from tests.train.helpers import small


def turned(number: int) -> bytes:
    """A JPEG that EXIF says to turn."""
    image = Image.open(io.BytesIO(jpeg(number)))
    exif = image.getexif()
    exif[0x0112] = 6
    file = io.BytesIO()
    image.save(file, "JPEG", exif=exif)
    return file.getvalue()


@pytest.fixture
def existing(tmp_path: Path) -> Path:
    """As img2dataset leaves it: tars with json members, and a parquet file of its own beside each."""
    folder = tmp_path / "set"
    (folder / "more").mkdir(parents=True)
    for name, start in (("00000", 0), ("00001", 10), ("more/00000", 20)):
        members = [
            member
            for number in range(start, start + 5)
            for member in ((f"{number:09d}.jpg", jpeg(number)), (f"{number:09d}.json", about(url=f"http://x/{number}")))
        ]
        write_tar(folder / f"{name}.tar", *members, (f"{start}-p.png", png(start)), (f"{start}-t.jpg", turned(start)))
        (folder / f"{name}.parquet").write_bytes(b"not ours")
    return folder


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_set_is_used_where_it_stands(tmp_path: Path, existing: Path, elsewhere: bool) -> None:
    before = files(existing)
    arguments = ["--out", tmp_path / "index"] if elsewhere else []
    run = seer_ingest("index", existing, *arguments, "--keep-columns", "url", "--json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["stored"] == 15
    after = files(existing)
    assert {name: after[name] for name in before} == before
    if elsewhere:
        assert after == before
    root = tmp_path / "index" if elsewhere else existing
    assert is_shard_set(str(root))
    shards = ShardSet.open(root)
    read = {
        row["url"]: (shards.read(number, row), row["width"], row["key"])
        for number in range(len(shards.paths))
        for row in shards.sidecar(number).to_pylist()
    }
    assert read == {f"http://x/{n}": (jpeg(n), 64, f"{n:09d}") for n in (*range(5), *range(10, 15), *range(20, 25))}
    assert [len(shards.index(number).offset) for number in range(3)] == [5, 5, 5]
    assert set(rejected(root).values()) == {"needs_reencoding"}
    again = seer_ingest("index", existing, *arguments, "--keep-columns", "url", "--json")
    assert again.stdout == run.stdout


def test_an_index_can_be_made_into_shards(tmp_path: Path, existing: Path) -> None:
    for arguments in (
        ("index", existing, "--out", tmp_path / "index", "--keep-columns", "url"),
        ("webdataset", tmp_path / "index", "--out", tmp_path / "own", "--keep-columns", "url"),
    ):
        run = seer_ingest(*arguments)
        assert run.returncode == 0, run.stderr
    shards = ShardSet.open(tmp_path / "own")
    assert [row["url"] for row in shards.sidecar(0).to_pylist()] == [
        f"http://x/{n}" for n in (*range(5), *range(10, 15), *range(20, 25))
    ]


def test_what_cannot_be_indexed_is_said(tmp_path: Path, existing: Path) -> None:
    def said(*arguments: object) -> str:
        run = seer_ingest("index", *arguments)
        assert run.returncode == 2
        assert run.stderr.count("\n") == 1
        return run.stderr

    assert "say with --out where" in said(existing / "00000.tar")
    assert "no such file" in said(tmp_path / "none")
    assert "short_side and repair need encoding" in said(existing, "--short-side", 64)
    assert seer_ingest("index", existing).returncode == 0
    assert "min_side (32, now 8)" in said(existing, "--min-side", 8)
    data = bytearray((existing / "00000.tar").read_bytes())
    data[600] ^= 1
    (existing / "00000.tar").write_bytes(data)  # of the same size as before
    assert "was begun with another" in said(existing)


@pytest.mark.slow
def test_what_img2dataset_makes_trains_in_place(tmp_path: Path, server: Web) -> None:
    """The real package, in an environment of its own (it pins what we do not), from its output to batches."""
    python = os.environ.get("SEER_PIPE_IMG2DATASET")
    if python is None:
        pytest.skip("SEER_PIPE_IMG2DATASET names no Python that has img2dataset 1.47")
    rows = (f"{server.url(f'/jpeg/{number}')},no {number}\n" for number in range(40))
    (tmp_path / "list.csv").write_text("url,caption\n" + "".join(rows))
    out = tmp_path / "made"
    subprocess.run(
        [
            *(python, "-m", "img2dataset.main", "--url_list", tmp_path / "list.csv", "--input_format", "csv"),
            *("--caption_col", "caption", "--output_format", "webdataset", "--output_folder", out),
            *("--number_sample_per_shard", "15", "--image_size", "64", "--processes_count", "1"),
        ],
        check=True, capture_output=True, timeout=200, env=os.environ | {"NO_ALBUMENTATIONS_UPDATE": "1"},
    )  # fmt: skip
    run = seer_ingest("index", out, "--keep-columns", "caption,url", "--json")
    assert run.returncode == 0, run.stderr
    assert json.loads(run.stdout)["stored"] == 40
    shards = ShardSet.open(out)
    second = shards.sidecar(1).to_pylist()  # in the order in which they came
    assert sorted(int(row["caption"].removeprefix("no ")) for row in second) == list(range(15, 30))
    assert all(row["url"].endswith(f"/jpeg/{row['caption'].removeprefix('no ')}") for row in second)
    plan = Plan(shards.counts, seed=0, batch=8, lanes=4, chunk=5)
    stream = Stream(shards, plan, np.arange(8))
    batches = list(stream.batches(0, plan.steps_per_epoch))
    stream.close()
    assert sorted(n for batch in batches for n in batch.places.sample.tolist()) == list(range(40))
    assert not any(batch.reasons for batch in batches)
    assert train(small(out, train={"images": 24}), tmp_path / "run", lambda _: None)
    assert train(small(out, train={"images": 24}), tmp_path / "run", lambda _: None)
