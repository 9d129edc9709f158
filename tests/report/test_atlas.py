"""The atlas: clusters of known make-up are told as they are, at any size, and its lists are what ingest excludes."""

import base64
import csv
import json
import re
import resource
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ingest.tools.excluded import exclude
from seer_pipe.errors import UserError
from seer_pipe.evaluate.embeddings import IDENTITY
from seer_pipe.report import clusters as module
from seer_pipe.report.atlas import write_atlas, write_keys
from seer_pipe.report.clusters import clusters, neighbours, reduce
from seer_pipe.shards import ShardSet, put_sidecar, sidecar_path, write_manifest
from seer_pipe.train.loop import train
from tests.train.helpers import make_pictures, small

WIDTH = 8


def write_embeddings(file: Path, keys: list[str], shard: list[str], index: list[int], cluster: np.ndarray | None,
                     feature: np.ndarray, rows: int = 16) -> None:  # fmt: skip
    table = pa.table({
        "key": keys, "shard": shard, "index": pa.array(index, pa.int32()),
        "cluster": pa.nulls(len(keys), pa.int32()) if cluster is None else pa.array(cluster, pa.int32()),
        "confidence": pa.array(np.ones(len(keys)), pa.float32()),
        "feature": pa.FixedSizeListArray.from_arrays(pa.array(feature.reshape(-1), pa.float32()), feature.shape[1]),
    })  # fmt: skip
    pq.write_table(table, file, row_group_size=rows)


@pytest.fixture
def made(tmp_path: Path) -> tuple[Path, ShardSet]:
    """40 images in two shards; clusters 0 to 3 by quarters, 7 has one image far off its others."""
    shards = ShardSet.open(make_pictures(tmp_path / "set", [30, 10]))
    cluster = np.repeat([0, 3, 5, 7], 10)
    rng = np.random.default_rng(0)
    axes = np.eye(WIDTH)[:4]
    feature = axes[np.repeat(np.arange(4), 10)] + 0.01 * rng.standard_normal((40, WIDTH))
    feature[39] = -3 * np.eye(WIDTH)[6]
    write_embeddings(tmp_path / "embeddings.parquet", [f"{n:06d}" for n in range(40)],
                     ["00000.tar"] * 30 + ["00001.tar"] * 10, [*range(30), *range(10)], cluster, feature)  # fmt: skip
    return tmp_path / "embeddings.parquet", shards


def test_clusters(made: tuple[Path, ShardSet], tmp_path: Path) -> None:
    sources = made[1].sidecar(0)["source"].to_pylist()[:5]
    (tmp_path / "labels.csv").write_text("source,label\n" + "".join(f"{source},odd\n" for source in sources))
    found = clusters(*made, str(tmp_path / "labels.csv"))
    assert found.cluster.tolist() == [0, 3, 5, 7]
    assert found.size.tolist() == [10] * 4
    assert found.outliers[0] == 39
    members = [found.ranked[a:b].tolist() for a, b in pairwise(found.start)]
    assert [{found.rows.cluster[row] for row in rows} for rows in members] == [{0}, {3}, {5}, {7}]
    assert members[3][-1] == 39
    for rows in members:
        assert (np.diff(found.cosine[rows]) <= 0).all()
    assert found.cohesion[:3].min() > 0.99 > found.cohesion[3]
    assert found.group[0] == ("odd", 1.0)
    assert found.group[1] == ("", 0.0)
    assert clusters(*made, "key").group[0][1] == 0.1
    assert clusters(*made, "folder").group[0] == (sources[0].split("/")[0], 0.2)
    with pytest.raises(UserError, match="'shape': no column of"):
        clusters(*made, "shape")
    assert sorted(found.near[0].tolist()) == [1, 2, 3]


def test_sizes_are_exact_where_features_are_sampled(
    made: tuple[Path, ShardSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SAMPLE", 32)  # two of three row groups
    found = clusters(*made, None)
    assert found.images == 40
    assert len(found.rows.key) == 24
    assert found.cluster.tolist() == [0, 3, 7]  # of cluster 5 no image was looked at
    assert found.size.tolist() == [10] * 3


def test_repeated_pictures_are_told(made: tuple[Path, ShardSet]) -> None:
    file, shards = made
    table = shards.sidecar(0)
    hashes = np.arange(1, 31, dtype=np.uint64)
    hashes[10:15] = 99  # half of cluster 3
    column = table.schema.get_field_index("phash")
    table = table.set_column(column, "phash", pa.array(hashes))
    put_sidecar(shards.store, shards.sidecars[0], table, int(shards.bytes[0]), shards.sha256[0])
    found = clusters(file, shards, None)
    assert found.repeated.round(2).tolist() == [0, 0.5, 0, 0]
    assert found.repeats == [(5, [10, 11, 12, 13, 14])]


def script(page: Path, name: str) -> Any:
    """What a script of the page's folder says."""
    return json.loads(re.sub(r"^[^{]*|\)?;\n$", "", (page.parent / name).read_text()))


def test_atlas_and_its_keys(made: tuple[Path, ShardSet], tmp_path: Path) -> None:
    file, _ = made
    root = str(tmp_path / "set")
    page = write_atlas(tmp_path, tmp_path / "atlas", root, embeddings=file)
    about = script(page, "data.js")
    assert about["size"] == [10] * 4
    assert about["start"] == [0, 10, 20, 30, 40]
    images = script(page, "images/000.js")
    assert set(images["key"][:10]) == {f"{n:06d}" for n in range(10)}
    assert images["key"][about["outliers"][0]] == "000039"
    text = page.read_text()
    assert "fetch(" not in text
    assert "http" not in text
    with (page.parent / "keys/3.csv").open() as lines:
        assert [row["key"] for row in csv.DictReader(lines)] == [f"{n:06d}" for n in range(10, 20)]
    assert write_keys(file, [3, 7], tmp_path / "keys.csv") == 20
    assert exclude(root, str(tmp_path / "keys.csv")) == (20, 20)
    assert exclude(root, str(page.parent / "keys/0.csv")) == (10, 30)
    write_atlas(tmp_path, page.parent, root, embeddings=file)  # again, in its place
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.txt").touch()
    with pytest.raises(UserError, match="holds something else"):
        write_atlas(tmp_path, tmp_path / "mine", root, embeddings=file)
    with pytest.raises(UserError, match="no image of cluster 4"):
        write_keys(file, [4], tmp_path / "keys.csv")
    with pytest.raises(UserError, match="not a file of clusters"):
        write_keys(tmp_path / "keys.csv", [4], tmp_path / "more.csv")


def test_embeddings_of_another_set_are_refused(made: tuple[Path, ShardSet], tmp_path: Path) -> None:
    file, shards = made
    table = pq.read_table(file).replace_schema_metadata({IDENTITY: f"weights {shards.fingerprint} choice"})
    pq.write_table(table, file)
    page = write_atlas(tmp_path, tmp_path / "atlas", str(tmp_path / "set"), embeddings=file)
    other = make_pictures(tmp_path / "other", [40])
    with pytest.raises(UserError, match=r"embeddings of another shard set than .*other"):
        write_atlas(tmp_path, tmp_path / "atlas", str(other), embeddings=file)
    assert page.exists()  # what was there stays


def test_so_many_clusters_by_kmeans(made: tuple[Path, ShardSet], tmp_path: Path) -> None:
    file, shards = made
    page = write_atlas(tmp_path, tmp_path / "atlas", str(tmp_path / "set"), embeddings=file, clusters=5)
    about = script(page, "data.js")
    assert (about["named_by"], about["clusters"], len(about["size"]), sum(about["size"])) == ("k-means", 5, 5, 40)
    assert about["sets"][0]["names"] == str(tmp_path / "atlas/clusters.parquet")
    first = about["cluster"][0]
    rows = pq.read_table(page.parent / "clusters.parquet").to_pylist()
    keys = [row["key"] for row in rows if row["cluster"] == first]
    assert write_keys(page.parent / "clusters.parquet", [first], tmp_path / "keys.csv") == about["size"][0] == len(keys)
    with (page.parent / f"keys/{first}.csv").open() as lines:
        assert [row["key"] for row in csv.DictReader(lines)] == keys
    itself = clusters(file, shards, None)
    assert (itself.named, itself.empty) == (8, 4)  # 0, 3, 5 and 7 of them
    with pytest.raises(UserError, match="41 clusters are more than its 40 images"):
        write_atlas(tmp_path, page.parent, str(tmp_path / "set"), embeddings=file, clusters=41)
    assert page.exists()  # what was there stays
    assert [entry.name for entry in tmp_path.iterdir() if entry.name.startswith(".")] == []


def test_neighbours_are_the_nearest() -> None:
    points = np.random.default_rng(1).standard_normal((50, 5)).astype(np.float32)
    distance = np.linalg.norm(points[:, None] - points[None], axis=2)
    np.fill_diagonal(distance, np.inf)
    assert np.array_equal(neighbours(points, rows=7), np.argsort(distance, axis=1)[:, :6])


def test_reduce_keeps_distances_of_few_dimensions() -> None:
    points = np.random.default_rng(2).standard_normal((40, 12)).astype(np.float32)
    found = reduce(points)
    want = np.linalg.norm(points[:, None] - points[None], axis=2)
    assert np.allclose(np.linalg.norm(found[:, None] - found[None], axis=2), want, atol=1e-3)
    assert np.array_equal(found, reduce(points))


@pytest.mark.slow
def test_sixteen_thousand_clusters_of_a_million_images(tmp_path: Path) -> None:
    """Memory holds the centres and a few numbers an image, not the features."""
    images, count, width, shard = 1_000_000, 16_000, 64, 10_000
    store = ShardSet.open(make_pictures(tmp_path / "one", [1])).store
    row = pq.read_table(tmp_path / "one/00000.parquet")
    paths = [f"{n:05d}.tar" for n in range(images // shard)]
    many = pa.table({name: row[name].take([0] * shard) for name in row.column_names}, row.schema)
    for path in paths:
        put_sidecar(store, sidecar_path(path), many, 1, "0")
    write_manifest(store, paths)
    rng = np.random.default_rng(0)
    centres = rng.standard_normal((count, width)).astype(np.float32)
    schema = pa.schema([("key", pa.string()), ("shard", pa.string()), ("index", pa.int32()),
                        ("cluster", pa.int32()), ("confidence", pa.float32()),
                        ("feature", pa.list_(pa.float32(), width))])  # fmt: skip
    with pq.ParquetWriter(tmp_path / "e.parquet", schema) as writer:
        for path in paths:
            cluster = rng.integers(0, count, shard)
            feature = centres[cluster] + rng.standard_normal((shard, width)).astype(np.float32)
            writer.write_table(pa.table([
                [f"{path[:5]}-{n}" for n in range(shard)], [path] * shard, pa.array(range(shard), pa.int32()),
                pa.array(cluster, pa.int32()), pa.array(np.ones(shard), pa.float32()),
                pa.FixedSizeListArray.from_arrays(pa.array(feature.reshape(-1)), width),
            ], schema=schema))  # fmt: skip
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = clusters(tmp_path / "e.parquet", ShardSet.open(tmp_path / "one"), None)
    assert found.size.sum() == images
    assert len(found.cluster) == count
    assert found.cohesion.min() > 0.5
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 1_500_000  # KiB


@pytest.mark.slow
def test_a_picture_is_searched_for(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "set", [24])
    assert train(small(pictures, train={"images": 16}), tmp_path / "run", say=lambda _: None)
    shards = ShardSet.open(pictures)
    asked = []
    for number in (5, 20):
        asked.append(tmp_path / f"asked-{number}.jpg")
        asked[-1].write_bytes(shards.read(0, shards.sidecar(0).slice(number, 1).to_pylist()[0]))
    page = write_atlas(tmp_path / "run", tmp_path / "atlas", search=asked)
    about = script(page, "data.js")
    keys = script(page, "images/000.js")["key"]
    assert [(name, keys[nearest[0]]) for name, nearest, _ in about["asked"]] == [
        ("asked-5.jpg", "000005"), ("asked-20.jpg", "000020"),
    ]  # fmt: skip
    points = script(page, "points.js")
    x, y = (np.frombuffer(base64.b64decode(points[axis]), "<u2") for axis in "xy")
    for place, number in enumerate((5, 20)):
        at = keys.index(f"{number:06d}")
        with (
            Image.open(page.parent / "asked.jpg") as sheet,
            Image.open(page.parent / f"tiles/{about['levels'] - 1}/{x[at] // 8}-{y[at] // 8}.jpg") as tile,
        ):
            own = np.asarray(sheet.crop((0, 64 * place, 64, 64 * place + 64)), np.int64)
            left, top = 64 * (x[at] % 8), 64 * (y[at] % 8)
            same = np.asarray(tile.crop((left, top, left + 64, top + 64)), np.int64)
        assert np.abs(own - same).mean() < 12  # levels
    (tmp_path / "text.jpg").write_text("no picture")
    with pytest.raises(UserError, match=r"text\.jpg: cannot identify"):
        write_atlas(tmp_path / "run", tmp_path / "atlas", search=[tmp_path / "text.jpg"])
    write_embeddings(tmp_path / "other.parquet", ["000000"], ["00000.tar"], [0], np.zeros(1), np.ones((1, WIDTH)))
    with pytest.raises(UserError, match="of other weights than"):
        write_atlas(tmp_path / "run", tmp_path / "atlas", embeddings=tmp_path / "other.parquet", search=asked)
    assert (page.parent / "asked.jpg").exists()  # what was there stays
