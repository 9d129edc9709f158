"""Clusters where no objective names any: k-means of embeddings, and files that fall to its centroids."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from typer.testing import CliRunner

from ingest.tools.excluded import exclude
from seer_pipe.cli import app
from seer_pipe.errors import UserError
from seer_pipe.evaluate import cluster as module
from seer_pipe.evaluate.assign import assign_files
from seer_pipe.evaluate.centroids import read_centroids
from seer_pipe.evaluate.cluster import cluster, cluster_set, default_clusters
from seer_pipe.evaluate.embed import embed
from seer_pipe.evaluate.subject import load_subject
from seer_pipe.export import export_backbone
from seer_pipe.models import build_trunk
from seer_pipe.report.atlas import write_atlas, write_keys
from seer_pipe.shards import ShardSet
from tests.distributed import run_ranks
from tests.report.test_atlas import write_embeddings
from tests.train.helpers import make_pictures

KINDS, EACH, WIDTH = 6, 50, 12


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Images of six directions in turn, features of any length, 16 rows per row group."""
    draws = np.random.default_rng(0)
    rows = np.eye(WIDTH)[np.arange(KINDS * EACH) % KINDS] + 0.1 * draws.standard_normal((KINDS * EACH, WIDTH))
    keys = [f"{n:06d}" for n in range(len(rows))]
    write_embeddings(tmp_path / "e.parquet", keys, ["00000.tar"] * len(rows), list(range(len(rows))), None,
                     rows * draws.uniform(0.1, 9, (len(rows), 1)))  # fmt: skip
    return tmp_path / "e.parquet"


@pytest.mark.parametrize("sample", [1 << 18, 64], ids=["of all", "of a sample"])
def test_every_image_falls_to_the_nearest_centroid(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, sample: int
) -> None:
    monkeypatch.setattr(module, "SAMPLE", sample)
    monkeypatch.setattr(module, "PER_CLUSTER", 1)
    said: list[str] = []
    named = pq.ParquetFile(cluster(file, tmp_path / "atlas", 12, say=said.append))
    assert said == [f"k-means: 12 clusters of 300 images, found on {300 if sample > 300 else 60}"]
    data, table = pq.ParquetFile(file), named.read()
    groups = [[one.metadata.row_group(group).num_rows for group in range(one.num_row_groups)] for one in (data, named)]
    assert groups[0] == groups[1]
    assert table.select(["key", "shard", "index"]).equals(pq.read_table(file, columns=["key", "shard", "index"]))
    features = torch.tensor(data.read()["feature"].to_pylist()).double()
    cosine = torch.nn.functional.normalize(features) @ read_centroids(tmp_path / "atlas", "").matrix.double().T
    assert table["cluster"].to_pylist() == cosine.argmax(1).tolist()
    assert table["confidence"].to_pylist() == pytest.approx(cosine.amax(1).tolist(), abs=1e-6)
    found = table["cluster"].to_numpy()
    kinds = np.arange(len(found)) % KINDS
    assert all(len(set(kinds[found == one])) == 1 for one in set(found.tolist()))  # none mixes two directions


def test_how_many() -> None:
    assert [default_clusters(images) for images in (3, 600, 1_000_000, 10**10)] == [2, 24, 1000, 16_000]


def test_too_many_and_features_that_are_not_finite(file: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="301 clusters are more than its 300 images; give fewer"):
        cluster(file, tmp_path / "atlas", 301)
    write_embeddings(tmp_path / "nan.parquet", ["a", "b"], ["00000.tar"] * 2, [0, 1], None, np.full((2, 3), np.nan))
    with pytest.raises(UserError, match=r"nan\.parquet: .* not finite; are the weights sound"):
        cluster(tmp_path / "nan.parquet", tmp_path / "atlas")
    with pytest.raises(UserError, match=r"names no clusters; seer-pipe atlas makes some"):
        write_keys(file, [0], tmp_path / "keys.csv")


def test_a_backbone_alone_has_an_atlas_and_files_fall_to_its_clusters(
    backbone: Path, shards: Path, folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=r"names no clusters itself: draw an atlas by seer-pipe atlas"):
        list(assign_files(backbone, [folder]))
    page = write_atlas(backbone, tmp_path / "atlas", str(shards), embeddings=tmp_path / "e.parquet")
    rows = pq.read_table(page.parent / "clusters.parquet").to_pylist()
    assert {row["cluster"] for row in rows} <= set(range(5))  # 24 images
    found = {Path(line["file"]).stem: line for line in assign_files(backbone, [folder], page.parent)}
    same = [row for row in rows if int(row["key"]) % 5]  # those that the folder holds as JPEG too
    assert [found[row["key"][-2:]]["cluster"] for row in same] == [row["cluster"] for row in same]
    assert [found[row["key"][-2:]]["confidence"] for row in same] == pytest.approx(
        [row["confidence"] for row in same], abs=1e-3
    )
    with pytest.raises(UserError, match=r"no atlas whose clusters are by k-means \(no centroids"):
        list(assign_files(backbone, [folder], tmp_path))
    trunk = build_trunk("regnety_200mf")
    export_backbone(trunk, tmp_path / "other", images=torch.randn(2, 3, 32, 32), metadata={})
    with pytest.raises(UserError, match="an atlas of other weights"):
        list(assign_files(tmp_path / "other", [folder], page.parent))


def seer_pipe(*words: object) -> dict[str, Any]:
    found = CliRunner().invoke(app, [*map(str, words), "--json"], catch_exceptions=False)
    assert found.exit_code == 0, found.output
    return json.loads(found.stdout)


def test_a_set_by_a_backbone_or_by_kept_embeddings(backbone: Path, shards: Path, folder: Path, tmp_path: Path) -> None:
    first = seer_pipe("cluster", backbone, shards, "--out", tmp_path / "first", "--clusters", 3)
    assert first == {"assignments": str(tmp_path / "first/clusters.parquet"), "images": 24, "clusters": 3,
                     "empty": 0, "largest": first["largest"]}  # fmt: skip
    table = pq.read_table(first["assignments"])
    assert max(np.bincount(table["cluster"].to_numpy())) == first["largest"]
    again = seer_pipe("cluster", tmp_path / "first/embeddings.parquet", "--out", tmp_path / "again", "--clusters", 3)
    assert pq.read_table(again["assignments"]).equals(table)  # the set is that of the embeddings
    assert {file.name for file in (tmp_path / "again").iterdir()} == {"clusters.parquet", "centroids.safetensors"}
    seer_pipe("atlas-keys", first["assignments"], 0, 2, "--out", tmp_path / "keys.csv")
    exclude(shards, str(tmp_path / "keys.csv"))
    try:
        excluded = ShardSet.open(shards).excluded.tolist()
    finally:
        (shards / "excluded.parquet").unlink()
    assert excluded == np.flatnonzero(table["cluster"].to_numpy() != 1).tolist()


def test_euclidean_clusters_and_files_that_fall_to_them(
    backbone: Path, shards: Path, folder: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    seer_pipe("cluster", backbone, shards, "--out", out, "--clusters", 4, "--euclidean")
    table = pq.read_table(out / "clusters.parquet")
    features = torch.tensor(pq.read_table(out / "embeddings.parquet")["feature"].to_pylist()).double()
    distance = torch.cdist(features, read_centroids(out, load_subject(backbone).digest).matrix.double()).square()
    assert table["cluster"].to_pylist() == distance.argmin(1).tolist()
    assert table["confidence"].to_pylist() == pytest.approx((-distance.amin(1)).tolist(), rel=1e-3, abs=1e-4)
    found = {Path(line["file"]).stem: line for line in assign_files(backbone, [folder], out)}
    same = [row for row in table.to_pylist() if int(row["key"]) % 5]
    assert [found[row["key"][-2:]]["cluster"] for row in same] == [row["cluster"] for row in same]


def test_two_ranks_cluster_as_one_does(backbone: Path, shards: Path, file: Path, tmp_path: Path) -> None:
    one = cluster_set(file, "unused", tmp_path / "one", 12)
    results = run_ranks(2, cluster_set, file, "unused", tmp_path / "two", 12)
    assert one is not None
    assert results == [one | {"assignments": str(tmp_path / "two/clusters.parquet")}, None]
    alone, shared = (pq.read_table(tmp_path / f"{name}/clusters.parquet") for name in ("one", "two"))
    assert shared.drop_columns(["confidence"]).equals(alone.drop_columns(["confidence"]))
    assert shared["confidence"].to_pylist() == pytest.approx(alone["confidence"].to_pylist(), abs=1e-6)
    with pytest.raises(UserError, match="does not say which shard set it is of; give the set too"):
        cluster_set(file, None, tmp_path / "three")


def test_which_set_and_which_features_are_meant(backbone: Path, shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="not a run, so it does not say which shard set is meant; give the set too"):
        cluster_set(backbone, None, tmp_path / "out")
    with pytest.raises(UserError, match="no such run, exported backbone or file of embeddings"):
        cluster_set(tmp_path / "none", None, tmp_path / "out")
    embed(backbone, str(shards), tmp_path / "e.parquet")
    other = make_pictures(tmp_path / "other", [24])
    with pytest.raises(UserError, match="embeddings of another shard set than"):
        cluster_set(tmp_path / "e.parquet", str(other), tmp_path / "out")
    assert not (tmp_path / "out").exists()
