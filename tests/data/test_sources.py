"""Several shard sets in one order; samples that are excluded; one epoch by default."""

import os
import shlex
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from seer_pipe.config import Data, Sound, Views, derive
from seer_pipe.data.order import Plan, slots_of
from seer_pipe.data.rows import Indexes, Rows
from seer_pipe.data.sources import Mix, apportion, open_data
from seer_pipe.data.stream import Stream
from seer_pipe.errors import UserError
from seer_pipe.shards import EXCLUDED, FINGERPRINT_KEY, ShardSet, write_manifest
from seer_pipe.store import open_store
from seer_pipe.train.loop import train
from tests.test_shards import make_set
from tests.train.helpers import make_pictures, small


@st.composite
def mixes(draw: st.DrawFn) -> Mix:
    share = draw(st.integers(1, 3))
    plans = []
    for seed in range(draw(st.integers(1, 4))):
        lanes = draw(st.integers(1, 4))
        counts = draw(st.lists(st.integers(0, 20), min_size=1, max_size=5))
        counts.append(draw(st.integers(lanes * share, 40)))
        plans.append(Plan(counts, lanes * share, seed=seed, lanes=lanes, chunk=draw(st.none() | st.integers(1, 9))))
    return Mix(plans)


@given(st.lists(st.floats(0.01, 100), min_size=1, max_size=6), st.integers(6, 500))
def test_lanes_are_divided_by_weight(weights: list[float], lanes: int) -> None:
    shares = apportion(weights, lanes)
    assert sum(shares) == lanes
    exact = np.array(weights) / sum(weights) * lanes
    assert all(share >= 1 for share in shares)
    if exact.min() >= 1:
        assert np.all(np.abs(shares - exact) < 1)


@given(mixes(), st.integers(0, 30))
def test_every_source_keeps_its_own_order(mix: Mix, step: int) -> None:
    places = mix.locate(step, np.arange(mix.batch))
    first = 0
    for plan in mix.plans:
        mine = places.sample[(places.sample >= first) & (places.sample < first + plan.samples)] - first
        assert sorted(mine.tolist()) == sorted(plan.locate(step, np.arange(plan.batch)).sample.tolist())
        first += plan.samples


@given(mixes(), st.integers(0, 30), st.data())
def test_every_world_size_sees_the_same_mixed_batch(mix: Mix, step: int, data: st.DataObject) -> None:
    world = data.draw(st.sampled_from([w for w in range(1, mix.batch + 1) if mix.batch % w == 0]))
    slots = np.arange(mix.batch)
    for ask in (lambda s: mix.locate(step, s).sample, lambda s: mix.substitute(step, s, 2).sample,
                lambda s: mix.epoch_of(step, s)):  # fmt: skip
        shared = [ask(slots_of(rank, world, mix.batch)) for rank in range(world)]
        assert np.array_equal(np.concatenate(shared), ask(slots))


@given(mixes(), st.integers(0, 30))
def test_places_of_a_mix_agree_with_each_other(mix: Mix, step: int) -> None:
    slots = np.arange(mix.batch)
    counts = np.concatenate([plan.counts for plan in mix.plans])
    starts = np.cumsum(counts) - counts
    located, substitutes = mix.locate(step, slots), mix.substitute(step, slots, 1)
    ends = np.cumsum([plan.samples for plan in mix.plans])
    sources = [np.searchsorted(ends, places.sample, "right").tolist() for places in (located, substitutes)]
    assert sources[0] == sources[1]
    for places in (located, substitutes):
        assert np.array_equal(starts[places.shard] + places.index, places.sample)
        for sample, chunk, inside in zip(places.sample, places.chunk, places.inside, strict=True):
            assert mix.members(int(chunk)).sample[inside] == sample


def test_a_rank_gets_its_share_of_every_source() -> None:
    mix = Mix([Plan([1000], 48, seed=0), Plan([1000], 12, seed=1), Plan([1000], 4, seed=2)])
    for rank in range(4):
        samples = mix.locate(7, slots_of(rank, 4, 64)).sample
        assert np.bincount(samples // 1000).tolist() == [12, 3, 1]


def test_a_short_source_begins_again_by_itself() -> None:
    """Whole batches at every step, while the short source is at its third epoch and the long one at its first."""
    mix = Mix([Plan([400], 8, seed=0), Plan([30], 8, seed=1)])
    epochs = [mix.epoch_of(step, np.arange(16)) for step in range(9)]
    assert sorted({(int(p.min()), int(p.max())) for p in epochs}) == [(0, 0), (0, 1), (0, 2)]
    short = [s for step in range(3) for s in mix.locate(step, np.arange(16)).sample.tolist() if s >= 400]
    assert len(short) == len(set(short)) == 24


def exclude(root: Path, samples: list[int], fingerprint: str | None = None) -> None:
    schema = pa.schema([("sample", pa.int64())])
    about = {FINGERPRINT_KEY: (fingerprint or ShardSet.open(root).fingerprint).encode()}
    pq.write_table(pa.table({"sample": samples}, schema).replace_schema_metadata(about), root / EXCLUDED)


def payloads(name: str, count: int) -> list[bytes]:
    return [f"{name}-{i}".encode() * (1 + i % 5) for i in range(count)]


def test_open_data_mixes_and_excludes(tmp_path: Path) -> None:
    make_set(tmp_path / "a", [payloads("a", 30), [], payloads("aa", 11)])
    make_set(tmp_path / "b", [payloads("b", 25)])
    exclude(tmp_path / "a", [0, 7, 8, 29, 30])
    data = Data.model_validate({"sources": [{"path": str(tmp_path / "a"), "weight": 3},
                                            {"path": str(tmp_path / "b"), "weight": 1}]})  # fmt: skip
    shards, plan = open_data(data, 8, seed=4)
    stream = Stream(shards, plan, np.arange(8))
    seen = list(stream.batches(0, 6))
    stream.close()
    assert not any(samples.reasons for samples in seen)
    images = [[bytes(image).split(b"-")[0] for image in samples.data] for samples in seen]
    assert {tuple(sorted(kind[:1] for kind in batch)) for batch in images} == {(b"a",) * 6 + (b"b",) * 2}
    from_a = [n for samples in seen for n in samples.places.sample.tolist() if n < 41]
    assert len(from_a) == 36
    assert sorted(from_a) == sorted(set(range(41)) - {0, 7, 8, 29, 30})
    alone, single = open_data(Data(path=str(tmp_path / "a")), 8, seed=4)
    assert (single.total, len(alone)) == (36, 41)


def test_a_plain_webdataset_is_indexed_once_by_the_command_that_the_error_names(tmp_path: Path) -> None:
    root = make_pictures(tmp_path / "plain set", [9, 8])
    for file in (*root.glob("*.parquet"), *root.glob("rejected/*")):
        file.unlink()
    tars = {file.name: file.read_bytes() for file in root.iterdir() if file.is_file()}
    data = Data(path=str(root))
    with pytest.raises(UserError, match=r"no shard set here.* once: seer-ingest index \S.*") as refused:
        open_data(data, 8, seed=0)
    _, *arguments = shlex.split(str(refused.value).rpartition("once: ")[2])
    subprocess.run([sys.executable, "-c", "from ingest.cli import main; main()", *arguments], check=True)
    assert {name: (root / name).read_bytes() for name in tars} == tars
    for _ in range(2):
        shards, plan = open_data(data, 8, seed=0)  # as in every later run, for which the index is there
        stream = Stream(shards, plan, np.arange(8))
        read = [bytes(image) for samples in stream.batches(0, 2) for image in samples.data if image is not None]
        stream.close()
        assert len(set(read)) == 16
        assert all(any(image in tar for tar in tars.values()) for image in read)


def test_what_the_page_cache_lost_is_read_from_the_disk_and_nothing_is_written_over(tmp_path: Path) -> None:
    make_set(tmp_path, [payloads("a", 30), payloads("b", 33)])
    shards = ShardSet.open(tmp_path)
    meant = [shards.read(shard, row) for shard in (0, 1) for row in shards.sidecar(shard).to_pylist()]
    stream = Stream(shards, Plan(shards.counts, 8, seed=0, chunk=6), np.arange(8))
    seen = []
    for samples in stream.batches(0, 70):
        seen.append(samples)  # all are held, so that no memory may serve again
        if samples.places.sample[0] % 3 == 0:
            for tar in tmp_path.glob("*.tar"):
                with tar.open("rb") as file:
                    os.fsync(file.fileno())
                    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
    stream.close()
    for samples in seen:
        assert not samples.reasons
        assert [bytes(image) for image in samples.data] == [meant[n] for n in samples.places.sample.tolist()]


def test_who_waits_is_not_told_that_another_did_not_want_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_set(tmp_path, [payloads("a", 30)])
    shards = ShardSet.open(tmp_path)
    indexes = Indexes(shards)
    asked, go_on = Event(), Event()

    def at_once(key: object) -> Any:
        asked.set()
        assert go_on.wait(60)
        raise BlockingIOError

    monkeypatch.setattr("seer_pipe.data.rows.at_once", at_once)
    with ThreadPoolExecutor(2) as threads:
        impatient = threads.submit(indexes.get, 0, wait=False)
        assert asked.wait(60)
        patient = threads.submit(indexes.get, 0)
        while not patient.running():
            time.sleep(0.001)
        go_on.set()
        assert len(patient.result().offset) == 30
        with pytest.raises(BlockingIOError):
            impatient.result()


def test_a_list_of_another_set_is_refused(tmp_path: Path) -> None:
    make_set(tmp_path, [payloads("a", 30)])
    exclude(tmp_path, [3], "another")
    with pytest.raises(UserError, match=r"excluded.parquet: was made when the set was another one; delete it"):
        open_data(Data(path=str(tmp_path)), 8, seed=0)
    exclude(tmp_path, [3, 99])
    with pytest.raises(UserError, match="not of the set"):
        open_data(Data(path=str(tmp_path)), 8, seed=0)
    (tmp_path / EXCLUDED).write_bytes(b"no parquet")
    with pytest.raises(UserError, match="not readable"):
        open_data(Data(path=str(tmp_path)), 8, seed=0)


def test_clips_are_no_images(tmp_path: Path) -> None:
    make_set(tmp_path / "set", [payloads("a", 30)])
    write_manifest(open_store(tmp_path / "set"), ["00000.tar"], media="video")
    assert len(open_data(Data(path=str(tmp_path / "set")), 8, seed=0)[0]) == 30
    config = small(tmp_path / "set")
    with pytest.raises(UserError, match=r"set: holds video clips; what is asked for takes images"):
        train(config, tmp_path / "run")
    assert Views(crops=config.views.crops, sound=Sound()).media == ("image", "video")  # whoever hears takes clips


def test_sources_that_cannot_be_mixed(tmp_path: Path) -> None:
    make_set(tmp_path / "a", [payloads("a", 30)])
    sources: list[dict[str, Any]] = [{"path": str(tmp_path / "a"), "weight": w} for w in (1, 1, 1)]
    with pytest.raises(UserError, match="3 sets for 2 lanes"):
        open_data(Data.model_validate({"sources": sources}), 2, seed=0)
    with pytest.raises(UserError, match=r"/a: 30 images are fewer than a batch of 32"):
        open_data(Data.model_validate({"sources": sources[:2]}), 64, seed=0)
    with pytest.raises(ValueError, match="either path or sources"):
        Data.model_validate({"path": "x", "sources": sources})
    with pytest.raises(ValueError, match="either path or sources"):
        Data.model_validate({})


def test_a_run_of_one_pass_over_two_sources_with_exclusions(tmp_path: Path) -> None:
    make_pictures(tmp_path / "a", [20])
    make_pictures(tmp_path / "b", [14])
    exclude(tmp_path / "b", [2, 3])
    sources = [{"path": str(tmp_path / name), "weight": 1} for name in "ab"]
    config = small(tmp_path, data={"path": None, "sources": sources}, train={"images": None},
                   objective={"queue": 0, "prototypes": 8})  # fmt: skip
    assert derive(config, 32).steps == 4  # one epoch, as neither images nor epochs are given
    said: list[str] = []
    assert train(config, tmp_path / "run", said.append)
    assert "done: 4 steps, 32 images" in said[-1]
    again = small(tmp_path, data={"path": None, "sources": [sources[0] | {"weight": 3}, sources[1]]},
                  train={"images": None}, objective={"queue": 0, "prototypes": 8})  # fmt: skip
    with pytest.raises(UserError, match=r"another order of its images .*a setting .*of data, .* changed; put it back"):
        train(again, tmp_path / "run", said.append)


@pytest.mark.parametrize("room", [1, 3, 100])
def test_what_is_known_of_samples_is_what_the_indexes_say(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """However few blocks are kept, and whatever shard is missing; and not to wait is not to ask a disk."""
    monkeypatch.setattr("seer_pipe.data.rows.BLOCK", 4)
    monkeypatch.setattr("seer_pipe.data.rows.INDEXED", 4 * room)
    make_set(tmp_path, [payloads("a", 11), [], payloads("b", 1), payloads("c", 25)])
    shards = ShardSet.open(tmp_path)
    (tmp_path / "00002.parquet").unlink()
    plan = Plan(shards.counts, 6, seed=1)
    rows = Rows(shards, 0)
    with pytest.raises(BlockingIOError):
        rows.find(plan.locate(0, np.arange(6)), wait=False)
    for step in range(40):
        places = plan.locate(step, np.arange(6))
        found, lost = rows.find(places, wait=True)
        assert sorted(lost) == np.flatnonzero(places.shard == 2).tolist()
        assert all("00002.parquet: no such sidecar" in reason for reason in lost.values())
        for row, shard, index in zip(found, places.shard.tolist(), places.index.tolist(), strict=True):
            of = None if shard == 2 else shards.index(shard)
            assert row.item() == tuple(0 if of is None else getattr(of, name)[index] for name in row.dtype.names)
