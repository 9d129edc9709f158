"""Stream and loader: the same bytes and batches from a folder and from S3, on any world size, with bad images."""

import itertools
import tarfile
import threading
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader

import seer_pipe
from seer_pipe.data.chunks import Samples
from seer_pipe.data.dali import Augmenter
from seer_pipe.data.loader import Batch, Loader
from seer_pipe.data.order import Plan
from seer_pipe.data.stream import Stream
from seer_pipe.data.views import CropSpec
from seer_pipe.errors import UserError
from seer_pipe.shards import ShardSet, ShardWriter, write_manifest
from seer_pipe.store import open_store
from tests.data import loading
from tests.train.helpers import make_pictures

CROPS = [CropSpec(1, 24, (0.3, 1.0)), CropSpec(1, 16, (0.1, 0.3))]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), [17, 0, 1, 30])


@pytest.fixture(scope="module")
def remote(pictures: Path, s3: Any) -> str:
    s3.create_bucket(Bucket="pictures")
    source, target = open_store(pictures), open_store("s3://pictures/set")
    for entry in source.list():
        target.put(entry.path, source.get(entry.path))
    return "s3://pictures/set"


batches = partial(loading.batches, crops=CROPS)


def told(samples: Samples) -> list[tuple[int, bytes]]:
    """The numbers of the samples and their bytes."""
    assert not samples.reasons
    return [(n, bytes(image)) for n, image in zip(samples.places.sample.tolist(), samples.data, strict=True)]


def assert_same(first: list[Batch], second: list[Batch]) -> None:
    assert [batch.step for batch in first] == [batch.step for batch in second]
    for one, other in zip(first, second, strict=True):
        assert all(torch.equal(a, b) for a, b in zip(one.crops, other.crops, strict=True))


@pytest.mark.parametrize(("lanes", "chunk"), [(8, None), (8, 5), (2, 5), (4, 3)])
def test_s3_gives_what_the_folder_gives(pictures: Path, remote: str, lanes: int, chunk: int | None) -> None:
    read = []
    for url in (pictures, remote):
        shards = ShardSet.open(url)
        plan = Plan(shards.counts, 8, seed=1, lanes=lanes, chunk=chunk)
        stream = Stream(shards, plan, np.arange(8), threads=3)
        read.append([told(samples) for samples in stream.batches(2, 11)])
        stream.close()
        third = Stream(shards, plan, np.arange(8), threads=3, every=3)  # as one of three workers reads
        assert [told(samples) for samples in third.batches(3, 11)] == read[-1][1::3]
        third.close()
    assert read[0] == read[1]
    assert all(data for batch in read[0] for _, data in batch)


def test_workers_read_from_s3_what_the_folder_holds(pictures: Path, remote: str) -> None:
    """Each opens the store anew: a connection that was made before the fork is none of its own."""
    there, here = seer_pipe.stream(remote, 8, seed=1), seer_pipe.stream(pictures, 8, seed=1)
    batches = DataLoader(there, batch_size=8, num_workers=2, collate_fn=list)
    named = [[(sample["__key__"], sample["jpg"]) for sample in batch] for batch in batches]
    assert sum(named, []) == [(sample["__key__"], sample["jpg"]) for sample in here]  # noqa: RUF017


def test_any_start_and_any_prefetch_give_the_same_batches(pictures: Path) -> None:
    shards = ShardSet.open(pictures)
    straight = batches(shards, 0, 9)
    assert_same(straight[4:], batches(shards, 4, 9, ahead=1, threads=1))
    assert_same(straight, batches(shards, 0, 9, ahead=5, threads=3))


def test_ranks_share_the_batch(pictures: Path) -> None:
    shards = ShardSet.open(pictures)
    alone = batches(shards, 3, 6)
    shared = [batches(shards, 3, 6, rank, 4) for rank in range(4)]
    for step, batch in enumerate(alone):
        for crop, pixels in enumerate(batch.crops):
            assert torch.equal(pixels, torch.cat([rank[step].crops[crop] for rank in shared]))


def damage(root: Path, shard: str, rows: list[int], how: bytes) -> None:
    import pyarrow.parquet as pq

    index = pq.read_table(root / f"{shard}.parquet").to_pylist()
    with (root / f"{shard}.tar").open("r+b") as tar:
        for row in rows:
            tar.seek(index[row]["offset"])
            tar.write(how)


def test_bad_bytes_are_replaced_by_rule_and_shift_nothing(tmp_path: Path) -> None:
    root = make_pictures(tmp_path / "set", [17, 31])
    whole = batches(ShardSet.open(root), 0, 12)
    damage(root, "00001", [4, 9], b"no image any more")
    hurt, again = batches(ShardSet.open(root), 0, 12), batches(ShardSet.open(root), 0, 12, ahead=1)
    assert_same(hurt, again)
    replaced = {(r.step, r.slot) for batch in hurt for r in batch.replaced}
    assert replaced
    assert {(r.shard, r.index) for batch in hurt for r in batch.replaced} <= {("00001.tar", 4), ("00001.tar", 9)}
    for one, other in zip(whole, hurt, strict=True):
        same = [torch.equal(a, b) for a, b in zip(one.crops[0], other.crops[0], strict=True)]
        assert same == [(one.step, slot) not in replaced for slot in range(8)]


@pytest.mark.slow
def test_a_shard_that_is_gone_from_the_store_is_replaced_as_one_from_a_folder(tmp_path: Path, s3: Any) -> None:
    root = make_pictures(tmp_path / "set", [17, 9, 31])
    s3.create_bucket(Bucket="hurt")
    source, target = open_store(root), open_store("s3://hurt/set")
    for entry in source.list():
        target.put(entry.path, source.get(entry.path))
    whole = batches(ShardSet.open("s3://hurt/set"), 0, 7)
    (root / "00001.tar").unlink()
    target.delete("00001.tar")
    here, there = (batches(ShardSet.open(url), 0, 7) for url in (root, "s3://hurt/set"))
    assert_same(here, there)
    lost = {(r.step, r.slot) for batch in there for r in batch.replaced}
    assert lost == {(r.step, r.slot) for batch in here for r in batch.replaced}
    assert {r.shard for batch in there for r in batch.replaced} == {"00001.tar"}
    for one, other in zip(whole, there, strict=True):
        same = [torch.equal(a, b) for a, b in zip(one.crops[0], other.crops[0], strict=True)]
        assert same == [(one.step, slot) not in lost for slot in range(8)]


def test_an_image_that_does_not_decode_is_replaced(tmp_path: Path) -> None:
    """Right by its checksum, and still no image: as a set made by other tools may have it."""
    root = make_pictures(tmp_path / "set", [20])
    store = open_store(root)
    writer = ShardWriter(store, "00001.tar")
    writer.add("000020", b"\xff\xd8 not much of a JPEG", source="bad", width=100, height=100)
    writer.commit()
    write_manifest(store, ["00000.tar", "00001.tar"])
    made = batches(ShardSet.open(root), 0, 4)
    told = {(r.shard, r.index) for batch in made for r in batch.replaced}
    assert told == {("00001.tar", 0)}
    assert all(bool(torch.isfinite(crop).all()) for batch in made for crop in batch.crops)


def test_a_set_without_a_usable_image_ends_with_a_clear_error(tmp_path: Path) -> None:
    root = make_pictures(tmp_path / "set", [16])
    (root / "00000.tar").write_bytes(b"")
    with pytest.raises(UserError, match="substitutes in a row"):
        batches(ShardSet.open(root), 0, 2)


def test_the_next_batch_is_made_while_a_step_trains(pictures: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The consumer, in the middle of its step, sees the crops of the next one come to their end."""
    made = [threading.Event() for _ in range(4)]
    count = itertools.count()
    augment = Augmenter.__call__

    def told(*arguments: Any) -> list[torch.Tensor]:
        crops = augment(*arguments)
        made[next(count)].set()
        return crops

    monkeypatch.setattr(Augmenter, "__call__", told)
    shards = ShardSet.open(pictures)
    loader = Loader(shards, Plan(shards.counts, 8, seed=3), np.arange(8), CROPS, seed=3, ahead=1)
    for batch in loader.batches(0, 4):
        if batch.step < 3:
            assert made[batch.step + 1].wait(timeout=60)
    loader.close()


@pytest.mark.parametrize("every", [24, pytest.param(1, marks=pytest.mark.slow)])
def test_nothing_nasty_ends_the_run(real_data: Path, tmp_path: Path, every: int) -> None:
    """Files of decoder test suites and fuzzers, stored as they are, among twice as many good images."""
    with tarfile.open(real_data / "nasty" / "nasty.tar") as archive:
        members = [member for member in archive if member.isfile()][::every]
        nasty = [archive.extractfile(member).read() for member in members]  # type: ignore[union-attr]
    store = open_store(make_pictures(tmp_path / "set", [2 * len(nasty)]))
    writer = ShardWriter(store, "00001.tar")
    for number, data in enumerate(nasty):
        writer.add(f"nasty{number:06d}", data, source="nasty", width=1, height=1)
    writer.commit()
    write_manifest(store, ["00000.tar", "00001.tar"])
    made = batches(ShardSet.open(tmp_path / "set"), 0, 3 * len(nasty) // 8)
    told = {r.index for batch in made for r in batch.replaced if r.shard == "00001.tar"}
    assert 0.4 * len(nasty) < len(told) < len(nasty)
    assert all(r.reason and "\n" not in r.reason for batch in made for r in batch.replaced)
    assert all(r.shard == "00001.tar" for batch in made for r in batch.replaced)
    assert all(bool(torch.isfinite(crop).all()) for batch in made for crop in batch.crops)


def test_leaving_early_leaves_no_thread(pictures: Path) -> None:
    shards = ShardSet.open(pictures)
    loader = Loader(shards, Plan(shards.counts, 8, seed=0), np.arange(8), CROPS, seed=0)
    for _ in loader.batches(0, 1_000_000):
        break
    loader.close()
    assert not [t for t in threading.enumerate() if t.name.startswith(("loader", "stream", "crops"))]
