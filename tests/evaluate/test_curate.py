"""Balanced sampling over clusters of clusters, semantic duplicates, and the lists that exclusion takes."""

import io
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from typer.testing import CliRunner

from ingest.tools.excluded import exclude
from seer_pipe.cli import app
from seer_pipe.config import Data
from seer_pipe.data.sources import open_data
from seer_pipe.distributed.kmeans import kmeans
from seer_pipe.errors import UserError
from seer_pipe.evaluate import duplicates as module
from seer_pipe.evaluate.balance import allot, choose, default_levels, default_target, hierarchy, share, totals
from seer_pipe.evaluate.curate import curate
from seer_pipe.evaluate.duplicates import COSINES, coarsest, duplicates, nearest_earlier, thresholds
from seer_pipe.evaluate.pictures import ShardPictures
from seer_pipe.evaluate.subject import Subject, recalibrate
from seer_pipe.export import Preprocessing, export_backbone
from seer_pipe.models import build_trunk
from seer_pipe.shards import ShardSet, ShardWriter, write_manifest
from seer_pipe.store import open_store

SIZES = st.lists(st.integers(0, 40), min_size=1, max_size=12).map(lambda sizes: np.array(sizes, np.int64))


@given(sizes=SIZES, target=st.integers(0, 500), seed=st.integers(0, 2**32))
def test_a_share_is_level(sizes: np.ndarray, target: int, seed: int) -> None:
    kept = share(sizes, target, np.random.default_rng(seed))
    assert kept.sum() == min(target, sizes.sum())
    assert np.all((kept >= 0) & (kept <= sizes))
    cut = kept[kept < sizes]  # clusters that give less than they have differ by one image at most, and
    if len(cut):
        assert cut.max() - cut.min() <= 1
        assert kept.max() <= cut.min() + 1  # none gives more than they do


@given(data=st.data(), seed=st.integers(0, 2**32))
def test_an_allotment_is_level_in_every_cluster(data: st.DataObject, seed: int) -> None:
    sizes = data.draw(SIZES)
    parents = []
    count = len(sizes)
    for _ in range(data.draw(st.integers(0, 3))):
        above = data.draw(st.integers(1, count))
        parents.append(np.array([data.draw(st.integers(0, above - 1)) for _ in range(count)]))
        count = above
    parents = [np.append(p[:-1], above - 1) if len(p) else p for p, above in
               zip(parents, [*map(len, parents[1:]), count], strict=False)]  # fmt: skip
    target = data.draw(st.integers(0, 300))
    kept = allot(sizes, parents, target, np.random.default_rng(seed))
    assert kept.sum() == min(target, sizes.sum())
    assert np.all((kept >= 0) & (kept <= sizes))
    for own, all_of in zip(totals(kept, parents)[1:], totals(sizes, parents)[1:], strict=True):
        assert np.all(own <= all_of)
    top, had = totals(kept, parents)[-1], totals(sizes, parents)[-1]
    cut = top[top < had]
    if len(cut):
        assert top.max() <= cut.min() + 1
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    chosen = choose(np.append(cluster, -1), kept, np.random.default_rng(seed))
    assert np.bincount(cluster, chosen[:-1], len(sizes)).tolist() == kept.tolist()
    assert set(chosen.tolist()) <= {0, 1}
    assert not chosen[-1]
    repeats = data.draw(st.integers(1, 5))
    kept = allot(sizes * repeats, parents, target, np.random.default_rng(seed))
    times = choose(cluster, kept, np.random.default_rng(seed))
    assert kept.sum() == min(target, sizes.sum() * repeats)
    assert np.bincount(cluster, times, len(sizes)).tolist() == kept.tolist()
    for number in range(len(sizes)):  # no image comes again before each of its cluster came
        own = times[cluster == number]
        assert not len(own) or own.max() - own.min() <= 1
    assert not len(times) or times.max() <= repeats


def test_levels() -> None:
    assert [default_levels(images) for images in (2, 100, 1700)] == [[2], [12], [212, 53, 13]]
    assert default_levels(10**9) == [16_000, 4000, 1000, 250, 62, 15]


def test_the_highest_clusters_are_as_many_for_rare_kinds_as_for_a_frequent_one() -> None:
    """Eight kinds of equal spread, of one ten times the images: a sample is balanced, where one of the lowest clusters
    alone is not."""
    draws = np.random.default_rng(0)
    kind = np.repeat(np.arange(8), [1000] + 7 * [100])
    centres = draws.standard_normal((8, 64))
    rows = centres[kind] / 8 + 0.8 * draws.standard_normal((len(kind), 64)) / 8
    levels = default_levels(len(rows))
    found = kmeans(torch.tensor(rows).float(), levels[0], seed=0, iterations=20)
    cluster, sizes = found.cluster.numpy(), found.sizes.numpy()
    parents = hierarchy(found.centroids, levels[1:], seed=0)
    assert [len(parent) for parent in parents] == levels[:-1]
    assert all(np.array_equal(one, two) for one, two in zip(parents, hierarchy(found.centroids, levels[1:], seed=0),
                                                            strict=True))  # fmt: skip
    shares = {}
    for name, above in (("levels", parents), ("lowest", [])):
        kept = allot(sizes, above, 400, np.random.default_rng(0))
        shares[name] = np.bincount(kind, choose(cluster, kept, np.random.default_rng(0)), 8)
        assert shares[name].sum() == 400
    assert shares["levels"][0] < 2 * shares["levels"][1:].mean()
    assert shares["lowest"][0] > 4 * shares["lowest"][1:].mean()
    assert 300 < default_target(sizes, parents) < default_target(sizes, parents, 4) < 1200


@pytest.mark.parametrize("block", [4096, 7], ids=["one block", "many blocks"])
def test_duplicates_are_those_near_an_earlier_image_of_their_cluster(
    block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "BLOCK", block)
    draws = np.random.default_rng(0)
    rows = draws.standard_normal((60, 16)).astype(np.float32) + 5  # all point one way
    for number in range(40, 60):
        rows[number] = rows[number % 20] + 0.05 * draws.standard_normal(16)
    cluster = np.arange(60) % 2
    mean = torch.from_numpy(rows).mean(0)
    found = duplicates(*nearest_earlier(torch.from_numpy(rows), mean, cluster), 0.9)
    centred = rows.astype(np.float64) - rows.astype(np.float64).mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    cosine = np.where((cluster[:, None] == cluster) & np.tri(60, k=-1, dtype=bool), centred @ centred.T, -1).max(1)
    assert found.cosine == pytest.approx(cosine, abs=1e-5)
    assert np.flatnonzero(found.found).tolist() == list(range(40, 60))
    assert found.first[40:].tolist() == [number % 20 for number in range(40, 60)]


def test_of_a_chain_the_first_stays() -> None:
    angles = torch.arange(5) * 0.3  # cos 0.3 is 0.955, cos 0.6 is 0.825
    rows = torch.stack([angles.cos(), angles.sin()], dim=1)
    found = duplicates(*nearest_earlier(rows, torch.zeros(2), np.array([0, 0, 0, 0, 1])), 0.9)
    assert found.first.tolist() == [-1, 0, 0, 0, -1]


def test_compared_within_the_coarsest_clusters_that_are_not_too_many_pairs() -> None:
    sizes, parents = np.array([10, 20, 30, 40]), [np.array([0, 0, 1, 1])]
    assert coarsest(sizes, parents, 10_000).tolist() == [0, 0, 0, 0]
    assert coarsest(sizes, parents, 9_999).tolist() == [0, 0, 1, 1]  # 30² + 70² = 5800
    assert coarsest(sizes, parents, 5_799).tolist() == [0, 1, 2, 3]
    assert coarsest(sizes, parents, 1).tolist() == [0, 1, 2, 3]


COLOURS = {"red": (200, 40, 40), "green": (40, 180, 60), "blue": (50, 60, 210), "yellow": (220, 210, 40)}


def patches(colour: str, number: int) -> Image.Image:
    """Blurred patches of shades of a colour, other ones for every number."""
    draws = np.random.default_rng([number, sorted(COLOURS).index(colour)])
    shades = np.array(COLOURS[colour]) * draws.uniform(0.25, 1.2, (5, 5, 1))
    return Image.fromarray(shades.clip(0, 255).astype(np.uint8)).resize((48, 48), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def lopsided(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """200 red images and 20 of each other colour; five of every colour come again, encoded anew."""
    root = tmp_path_factory.mktemp("lopsided")
    drawn = []
    for colour in COLOURS:
        for number in range(200 if colour == "red" else 20):
            drawn.append((f"{colour}-{number}", patches(colour, number), 95))
        for number in range(5):
            drawn.append((f"{colour}-{number}-again", patches(colour, number), 85))
    store, order = open_store(root), np.random.default_rng(1).permutation(len(drawn))
    for shard, part in enumerate(np.array_split(order, 2)):
        writer = ShardWriter(store, f"{shard}.tar")
        for name, image, quality in (drawn[place] for place in part.tolist()):
            buffer = io.BytesIO()
            image.save(buffer, "JPEG", quality=quality)
            writer.add(name, buffer.getvalue(), source=f"{name.split('-')[0]}/{name}.jpg", width=48, height=48)
        writer.commit()
    write_manifest(store, ["0.tar", "1.tar"])
    return root


@pytest.fixture(scope="module")
def backbone(lopsided: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained ResNet-18, whose features tell colours and patches apart."""
    torch.manual_seed(0)
    trunk = build_trunk("resnet18")
    recalibrate(Subject(trunk, 48, 0), ShardPictures(ShardSet.open(lopsided)))
    out = tmp_path_factory.mktemp("export") / "out"
    export_backbone(trunk, out, images=torch.randn(2, 3, 48, 48), metadata={}, preprocessing=Preprocessing(size=48))
    return out


def test_balance_is_restored_and_duplicates_are_gone(backbone: Path, lopsided: Path, tmp_path: Path) -> None:
    found = curate(backbone, str(lopsided), tmp_path / "out")
    assert found is not None
    left = pq.read_table(tmp_path / "out/exclude.parquet").to_pylist()
    kept = pq.read_table(tmp_path / "out/keep.parquet")["key"].to_pylist()
    pairs = [sorted((row["key"], row["of"])) for row in left if row["why"] == "duplicate"]
    assert sorted(pairs) == sorted(
        [f"{colour}-{number}", f"{colour}-{number}-again"] for colour in COLOURS for number in range(5)
    )
    assert len(left) + len(kept) == 280 == len({row["key"] for row in left} | set(kept))
    counts = Counter(key.split("-")[0] for key in kept)
    assert counts["red"] < 2 * np.mean([counts[colour] for colour in COLOURS if colour != "red"])
    assert min(counts.values()) >= 10
    assert exclude(lopsided, str(tmp_path / "out/exclude.parquet"))[1] == len(left)
    try:
        keys = np.concatenate([ShardSet.open(lopsided).sidecar(shard, ["key"])["key"].to_numpy() for shard in (0, 1)])
        assert np.delete(keys, ShardSet.open(lopsided).excluded).tolist() == kept
    finally:
        (lopsided / "excluded.parquet").unlink()


def test_a_group_whose_pictures_are_alike_is_not_emptied(backbone: Path, lopsided: Path, tmp_path: Path) -> None:
    """Of features that set all pictures of a kind near each other, most of each kind are kept, and its copies found."""
    draws = np.random.default_rng(0)
    source = tmp_path / "embeddings.parquet"
    curate(backbone, str(lopsided), tmp_path / "plain")
    table = pq.read_table(tmp_path / "plain/embeddings.parquet")
    keys = table["key"].to_pylist()
    kind = {colour: draws.standard_normal(512) for colour in COLOURS}
    own = {key: draws.standard_normal(512) for key in keys}
    weak = [kind[key.split("-")[0]] + 0.08 * own["-".join(key.split("-")[:2])] + 0.001 * own[key] for key in keys]
    rows = pa.array([row.astype(np.float16) for row in weak], table["feature"].type)
    pq.write_table(
        table.set_column(table.schema.get_field_index("feature"), table.schema.field("feature"), rows), source
    )
    lines: list[str] = []
    found = curate(source, str(lopsided), tmp_path / "out", say=lines.append)
    assert found is not None
    again = np.array([key.count("-") == 2 or f"{key}-again" in own for key in keys])
    assert found.duplicates.found[again].sum() >= 20  # one of each pair
    assert found.duplicates.found[~again].sum() < 0.1 * (~again).sum()
    assert "groups would lose more than half" in "".join(lines)
    given = curate(source, str(lopsided), tmp_path / "given", threshold=0.9)
    assert given is not None
    assert given.duplicates.found.sum() > 250


@given(data=st.data())
def test_a_group_has_the_least_cosine_that_leaves_it_half(data: st.DataObject) -> None:
    group = np.array(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=30)))
    cosine = np.array(
        data.draw(st.lists(st.floats(0.75, 1, width=32), min_size=len(group), max_size=len(group))), np.float32
    )
    found = thresholds(cosine, group)
    for number, above in enumerate(found):
        own = cosine[group == number]
        fit = [step for step in COSINES if (own > step).sum() <= len(own) / 2]
        assert above == min(fit, default=COSINES[-1])


def test_so_many_are_kept_and_the_page_tells_what_was_taken(backbone: Path, lopsided: Path, tmp_path: Path) -> None:
    def seer_pipe(*words: object) -> dict[str, Any]:
        done = CliRunner().invoke(app, ["curate", *map(str, words), "--json"], catch_exceptions=False)
        assert done.exit_code == 0, done.output
        return json.loads(done.stdout)

    first = seer_pipe(backbone, lopsided, "--out", tmp_path / "out", "--keep", 100, "--labels", "folder")
    assert first == {
        "images": 280, "kept": 100, "images_per_epoch": 100, "levels": [35, 8],
        "left_out": {"duplicates": 20, "surplus": 160},
        "exclude": str(tmp_path / "out/exclude.parquet"), "page": str(tmp_path / "out/index.html"),
    }  # fmt: skip
    kept = pq.read_table(tmp_path / "out/keep.parquet")
    page = Path(first["page"]).read_text()
    for colour, count in Counter(key.split("-")[0] for key in kept["key"].to_pylist()).items():
        had = 205 if colour == "red" else 25
        assert f"<td>{colour}</td><td>{had}</td><td>{count}</td>" in page
    assert "http" not in page.replace("http://www.w3.org", "")
    again = seer_pipe(
        tmp_path / "out/embeddings.parquet", "--out", tmp_path / "again", "--keep", 100, "--duplicates", 1
    )
    assert again["left_out"] == {"duplicates": 0, "surplus": 180}
    assert again["images"] == 280
    with pytest.raises(UserError, match="has 280 images, too few to keep 281 of; give fewer by --keep, or more"):
        curate(tmp_path / "out/embeddings.parquet", None, tmp_path / "more", keep=281)
    more = seer_pipe(
        tmp_path / "out/embeddings.parquet",
        "--out",
        tmp_path / "more",
        "--keep",
        320,
        "--repeats",
        4,
        "--labels",
        "folder",
    )
    assert more["images_per_epoch"] == 320
    assert f"data.repeats={more['repeats']}" in Path(more["page"]).read_text()
    shards, batch = ShardSet.open(lopsided), 40
    _, plan = open_data(Data(path=str(lopsided), repeats=more["repeats"]), batch, 0)
    places = plan.locate(np.repeat(np.arange(8), batch), np.tile(np.arange(batch), 8))  # an epoch
    keys = np.concatenate([shards.sidecar(shard, ["key"])["key"].to_numpy(zero_copy_only=False) for shard in (0, 1)])
    drawn, kept = Counter(keys[places.sample]), pq.read_table(tmp_path / "more/keep.parquet").to_pylist()
    assert drawn == {row["key"]: row["repeats"] for row in kept}
    assert len({key.removesuffix("-again") for key in drawn}) == len(drawn)  # duplicates do not come
    colours = Counter(key.split("-")[0] for key in keys[places.sample])
    assert max(drawn.values()) == 4
    assert colours["red"] < 1.6 * np.mean([colours[colour] for colour in COLOURS if colour != "red"])
    assert min(colours.values()) > 20  # than there are


@pytest.mark.slow
def test_two_ranks_choose_what_one_does(backbone: Path, lopsided: Path, tmp_path: Path) -> None:
    curate(backbone, str(lopsided), tmp_path / "one")
    torchrun = Path(sys.executable).with_name("torchrun")
    command = [torchrun, "--nproc-per-node", "2", "-m", "seer_pipe", "curate", backbone, lopsided]
    subprocess.run([*command, "--out", tmp_path / "two"], check=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    for name in ("keep", "exclude"):
        one, two = (pq.read_table(tmp_path / f"{ranks}/{name}.parquet", columns=["key", "group"])
                    for ranks in ("one", "two"))  # fmt: skip
        assert one.equals(two)
    assert (tmp_path / "two/index.html").exists()
