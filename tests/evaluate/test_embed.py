"""Embeddings of a set: what they say, and what a kill leaves of them."""

import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch

from seer_pipe.errors import UserError
from seer_pipe.evaluate import embed as module
from seer_pipe.evaluate.assign import assign, assign_files
from seer_pipe.evaluate.embed import embed
from seer_pipe.evaluate.labels import left_out
from seer_pipe.evaluate.release import export_run
from seer_pipe.evaluate.subject import load_run, load_subject
from seer_pipe.shards import ShardSet
from seer_pipe.share import Share
from seer_pipe.train.loop import train
from tests.distributed import run_ranks
from tests.train.helpers import make_pictures, small


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), [25, 15])


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(small(pictures, train={"images": 16}), folder, say=lambda _: None)
    return folder


def test_every_image_has_its_row(run: Path, pictures: Path, tmp_path: Path) -> None:
    result = embed(run, str(pictures), tmp_path / "e.parquet", part=16)
    assert result == {"embeddings": str(tmp_path / "e.parquet"), "images": 40, "left_out": left_out(Counter()),
                      "width": 368, "clusters": 12}  # fmt: skip
    assert [file.name for file in tmp_path.iterdir()] == ["e.parquet"]
    table = pq.read_table(tmp_path / "e.parquet")
    assert table.column_names == ["key", "shard", "index", "cluster", "confidence", "feature"]
    assert table["key"].to_pylist() == [f"{number:06d}" for number in range(40)]
    assert table["shard"].to_pylist() == ["00000.tar"] * 25 + ["00001.tar"] * 15
    assert table["index"].to_pylist() == [*range(25), *range(15)]
    assert table.schema.metadata[b"seer_pipe.backbone"] == b"regnety_200mf"
    features = torch.tensor(table["feature"].to_pylist())
    network = load_run(run)[2].eval()
    with torch.no_grad():
        shares = torch.softmax(network.head(features).scores.double() / 0.1, dim=1)
    assert torch.equal(torch.tensor(table["cluster"].to_pylist()), shares.argmax(1))
    assert torch.allclose(torch.tensor(table["confidence"].to_pylist()).double(), shares.amax(1), atol=1e-5)


def test_a_backbone_alone_names_no_clusters_and_a_full_export_the_runs(
    run: Path, pictures: Path, tmp_path: Path
) -> None:
    tables = {}
    for format in ("torchvision", "full"):
        export_run(run, tmp_path / format, format)
        embed(tmp_path / format, str(pictures), tmp_path / f"{format}.parquet")
        tables[format] = pq.read_table(tmp_path / f"{format}.parquet")
    embed(run, str(pictures), tmp_path / "run.parquet")
    whole = pq.read_table(tmp_path / "run.parquet")
    assert tables["torchvision"]["cluster"].null_count == tables["torchvision"]["confidence"].null_count == 40
    assert tables["torchvision"]["feature"].equals(whole["feature"])
    assert tables["full"].equals(whole)
    with pytest.raises(UserError, match="names no clusters itself"):
        list(assign_files(tmp_path / "torchvision", [pictures]))


@pytest.mark.slow
def test_two_ranks_write_what_one_does(run: Path, pictures: Path, tmp_path: Path) -> None:
    embed(run, str(pictures), tmp_path / "one.parquet", part=8)
    results = run_ranks(2, embed, run, str(pictures), tmp_path / "two.parquet")
    assert (results[0]["images"], results[1]) == (40, None)
    one, two = (pq.read_table(tmp_path / f"{name}.parquet") for name in ("one", "two"))
    assert one.drop(["feature", "confidence"]).equals(two.drop(["feature", "confidence"]))
    assert np.allclose(one["feature"].to_pylist(), two["feature"].to_pylist(), atol=1e-5)


def test_shares_write_what_one_process_does(run: Path, pictures: Path, tmp_path: Path) -> None:
    one, out = tmp_path / "one.parquet", tmp_path / "e.parquet"
    embed(run, str(pictures), one, part=4)
    said: list[str] = []
    for number in (2, 0):
        assert embed(run, str(pictures), out, part=4, share=Share(number, 3), say=said.append) is None
    assert said[-1] == "share 0/3 is done; 3 of 10 parts are left to other shares"
    assert embed(run, str(pictures), out, part=4, share=Share(1, 3))["images"] == 40
    assert pq.read_table(out).equals(pq.read_table(one))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["e.parquet", "one.parquet"]


@pytest.mark.slow
def test_goes_on_after_a_kill(run: Path, pictures: Path, tmp_path: Path) -> None:
    out, parts = tmp_path / "e.parquet", tmp_path / "e.parquet.parts"
    code = f"from pathlib import Path; from seer_pipe.evaluate.embed import embed; embed(Path({str(run)!r}), " \
           f"{str(pictures)!r}, Path({str(out)!r}), part=4)"  # fmt: skip
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        while process.poll() is None and len(list(parts.glob("0*.parquet"))) < 2:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    assert not out.exists()
    before = {file.name: file.stat().st_mtime_ns for file in parts.glob("0*.parquet")}
    made: list[str] = []
    embed(run, str(pictures), out, part=4, say=made.append)
    assert len(made) == 10 - len(before) < 10
    embed(run, str(pictures), tmp_path / "whole.parquet", part=4)
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "whole.parquet"))
    made.clear()
    embed(run, str(pictures), out, part=4, say=made.append)
    assert made == []


def test_parts_of_other_weights_are_not_used(run: Path, pictures: Path, tmp_path: Path, monkeypatch) -> None:
    out = tmp_path / "e.parquet"
    with monkeypatch.context() as patch:
        patch.setattr(module._Work, "join_parts", lambda self: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            embed(run, str(pictures), out)
    longer = tmp_path / "longer"
    train(small(pictures, train={"images": 24}), longer, say=lambda _: None)
    embed(longer, str(pictures), out)
    embed(longer, str(pictures), tmp_path / "fresh.parquet")
    assert pq.read_table(out).equals(pq.read_table(tmp_path / "fresh.parquet"))
    with pytest.raises(UserError, match="of other weights"):
        embed(run, str(pictures), out)


def test_excluded_images_are_left_out(run: Path, tmp_path: Path) -> None:
    from ingest.tools.excluded import exclude

    pictures = make_pictures(tmp_path / "set", [20])
    (tmp_path / "keys.txt").write_text("000003\n000007\n")
    exclude(pictures, str(tmp_path / "keys.txt"))
    assert len(ShardSet.open(pictures).excluded) == 2
    embed(run, str(pictures), tmp_path / "e.parquet")
    keys = pq.read_table(tmp_path / "e.parquet")["key"].to_pylist()
    assert keys == [f"{number:06d}" for number in range(20) if number not in (3, 7)]


def test_assign_names_clusters_of_files(run: Path, pictures: Path, tmp_path: Path) -> None:
    shards = ShardSet.open(pictures)
    for row in shards.sidecar(0).slice(0, 3).to_pylist():
        (tmp_path / f"{row['key']}.jpg").write_bytes(shards.read(0, row))
    (tmp_path / "broken.jpg").write_bytes(b"\xff\xd8 no picture")
    found = {Path(line["file"]).stem: line for line in assign_files(run, [tmp_path])}
    assert found["broken"]["cluster"] is None
    embed(run, str(pictures), tmp_path / "e.parquet")
    rows = pq.read_table(tmp_path / "e.parquet").slice(0, 3).to_pylist()
    assert [found[row["key"]]["cluster"] for row in rows] == [row["cluster"] for row in rows]
    subject = load_subject(run)
    assert assign(subject, torch.tensor([rows[0]["feature"]])).cluster.tolist() == [rows[0]["cluster"]]
