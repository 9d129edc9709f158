"""`seer_pipe.stream` in other libraries' hands: the plan's order for any ranks and workers, resumed at any sample."""

import json
import pickle
from collections.abc import Iterable
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import webdataset as wds
from torch.utils.data import DataLoader
from torchdata.stateful_dataloader import StatefulDataLoader

import seer_pipe
from seer_pipe.data.order import Plan
from seer_pipe.data.samples import SampleStream, State
from seer_pipe.data.sources import open_data
from seer_pipe.errors import UserError
from seer_pipe.shards import ShardSet, ShardWriter, write_manifest
from seer_pipe.store import open_store
from tests.ingest.web import jpeg
from tests.test_shards import make_set

COUNTS = [30, 0, 1, 41, 24]
BATCH = 12
STEPS = sum(COUNTS) // BATCH


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("samples")
    make_set(root, [[f"{s}/{i}".encode() for i in range(count)] for s, count in enumerate(COUNTS)])
    return root


def as_rank(monkeypatch: pytest.MonkeyPatch, rank: int, world: int) -> None:
    variables = {"RANK": rank, "WORLD_SIZE": world, "MASTER_ADDR": "localhost", "MASTER_PORT": 29500}
    for name, value in variables.items():
        monkeypatch.setenv(name, str(value))


def planned(folder: Path, steps: range, seed: int = 0) -> list[list[str]]:
    """What stands in the batches of those steps, all ranks together."""
    plan = Plan(ShardSet.open(folder).counts, BATCH, seed=seed)
    places = [plan.locate(step, np.arange(BATCH)) for step in steps]
    return [[f"{s}/{i}" for s, i in zip(p.shard.tolist(), p.index.tolist(), strict=True)] for p in places]


def images(batches: Iterable[Any]) -> list[list[str]]:
    return [[sample["jpg"].decode() for sample in batch] for batch in batches]


def flat(batches: Iterable[list[str]]) -> list[str]:
    return list(chain.from_iterable(batches))


def loader(data: SampleStream, batch: int = BATCH, workers: int = 0, kind: type = DataLoader) -> Any:
    return kind(data, batch_size=batch, num_workers=workers, collate_fn=list)


def test_a_sample_is_what_webdataset_makes_of_the_tar(folder: Path) -> None:
    there = {sample["__key__"]: sample for sample in wds.WebDataset(str(folder / "00000.tar"), shardshuffle=False)}
    mine = {sample["__key__"]: sample for sample in seer_pipe.stream(folder, BATCH)}
    assert len(mine) == STEPS * BATCH
    assert set(there) <= {*mine, *(f"00000{row:05d}" for row in range(30))}
    for key in there.keys() & mine.keys():
        assert mine[key]["jpg"] == there[key]["jpg"]
        assert mine[key]["__url__"] == there[key]["__url__"] == str(folder / "00000.tar")
        about = json.loads(mine[key]["json"])
        assert (about["source"], about["width"]) == (f"0/{int(key[5:])}", int(key[5:]) + 1)
        assert "offset" not in about


@pytest.mark.parametrize("workers", [0, 2, 3])
def test_batches_are_the_plans_for_any_workers(folder: Path, workers: int) -> None:
    data = seer_pipe.stream(folder, BATCH, seed=5, epochs=2, start=3)
    assert len(loader(data)) == 2 * STEPS - 3
    assert images(loader(data, workers=workers)) == planned(folder, range(3, 2 * STEPS), seed=5)


def test_ranks_share_the_steps(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shares = []
    for rank in range(3):
        as_rank(monkeypatch, rank, 3)
        shares.append(images(loader(seer_pipe.stream(folder, BATCH), BATCH // 3, workers=2)))
    assert [flat(step) for step in zip(*shares, strict=True)] == planned(folder, range(STEPS))
    as_rank(monkeypatch, 0, 5)
    with pytest.raises(UserError, match="5 ranks cannot share a batch of 12: use 4 or 6 ranks"):
        seer_pipe.stream(folder, BATCH)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stateful_loader_resumes_where_it_was(folder: Path, workers: int) -> None:
    def made() -> Any:
        return loader(seer_pipe.stream(folder, BATCH, epochs=2), 5, workers, StatefulDataLoader)  # not by whole steps

    straight = images(made())
    first = made()
    batches = iter(first)
    begun = [next(batches) for _ in range(7)]
    state = pickle.loads(pickle.dumps(first.state_dict()))
    again = made()
    again.load_state_dict(state)
    assert images(iter(begun)) + images(again) == straight
    assert sorted(flat(straight)) == sorted(flat(planned(folder, range(2 * STEPS))))


def test_one_integer_or_a_state_of_one_process_resumes_with_any_number(folder: Path) -> None:
    data = seer_pipe.stream(folder, BATCH)
    samples = iter(data)
    for _ in range(2 * BATCH + 5):
        next(samples)
    state = json.loads(json.dumps(data.state_dict()))
    assert (state["step"], state["done"]) == (2, 5)
    rest = flat(planned(folder, range(2, STEPS)))[5:]
    for workers in (0, 3):
        other = seer_pipe.stream(folder, BATCH)
        other.load_state_dict(state)
        got = flat(images(loader(other, BATCH, workers)))
        assert sorted(got) == sorted(rest)
        assert workers or got == rest
    other._state, other._loaded = State(4, 0, worker=1, workers=2), True
    with pytest.raises(UserError, match=r"that of worker 1 of 2, and this is 0 of 1: take as many, or start=STEP"):
        iter(other)
    with pytest.raises(UserError, match="this state is of another order"):
        seer_pipe.stream(folder, BATCH, seed=1).load_state_dict(state)


def test_webdatasets_own_stages_and_captions(tmp_path: Path) -> None:
    writer = ShardWriter(store := open_store(tmp_path), "00000.tar", [pa.field("caption", pa.string())])
    for number in range(16):
        caption = f"picture {number}" if number % 2 else None
        writer.add(f"{number:04d}", jpeg(number), source=str(number), width=64, height=64, caption=caption)
    writer.commit()
    write_manifest(store, ["00000.tar"])
    pipeline = wds.DataPipeline(
        seer_pipe.stream(tmp_path, 4),
        wds.map(lambda sample: {"txt": b"none"} | sample),
        wds.decode("rgb8"),
        wds.to_tuple("__key__", "jpg", "json", "txt"),
        wds.batched(4),
    )
    keys, pixels, about, captions = zip(*wds.WebLoader(pipeline, batch_size=None, num_workers=2), strict=True)
    plan = Plan([16], 4, seed=0)
    assert [list(map(int, batch)) for batch in keys] == [plan.locate(s, np.arange(4)).sample.tolist() for s in range(4)]
    assert all(batch.shape == (4, 64, 64, 3) for batch in pixels)
    for batch, told, said in zip(keys, about, captions, strict=True):
        assert [row["source"] for row in told] == [str(int(key)) for key in batch]
        assert said == [f"picture {int(key)}" if int(key) % 2 else "none" for key in batch]


def test_sets_are_mixed_by_weight(folder: Path, tmp_path: Path) -> None:
    make_set(tmp_path, [[f"b/{i}".encode() for i in range(40)]])
    data = seer_pipe.stream({str(folder): 2, str(tmp_path): 1}, BATCH, window=4)
    assert [sum(name.startswith("b/") for name in batch) for batch in images(loader(data))] == [4] * data.steps
    order = open_data(data._data, BATCH, 0)[1]
    assert data.steps == order.steps_per_epoch == 136 // BATCH


def test_what_cannot_be_read_is_replaced_and_too_much_of_it_stops(tmp_path: Path) -> None:
    made = make_set(tmp_path, [[f"{i}".encode() * 50 for i in range(60)]])
    rows = made.sidecar(0).to_pylist()
    with (tmp_path / "00000.tar").open("r+b") as tar:
        for row in rows[:9]:
            tar.seek(row["offset"])
            tar.write(b"damage")
    got = [sample["jpg"].decode() for sample in seer_pipe.stream(tmp_path, 6)]
    plan = Plan([60], 6, seed=0)
    meant = [f"{n}" * 50 for step in range(10) for n in plan.locate(step, np.arange(6)).sample.tolist()]
    assert sum(a != b for a, b in zip(got, meant, strict=True)) == 9
    assert all(a == b or meant.index(b) >= 0 for a, b in zip(got, meant, strict=True))
    with pytest.raises(
        UserError, match=r"images could not be read and were replaced, more than max_bad_fraction 0.001"
    ):
        list(seer_pipe.stream(tmp_path, 6, max_bad_fraction=0.001))


def test_bad_input_is_one_line(folder: Path, tmp_path: Path) -> None:
    for call, message in (
        (lambda: seer_pipe.stream(tmp_path, 4), "no shard set here"),
        (
            lambda: seer_pipe.stream(folder, 4, widnow=2),
            r"seer_pipe.stream: widnow: no such setting; did you mean window",
        ),
        (lambda: seer_pipe.stream(folder, 0), "batch 0, start 0, epochs 1: one is out of range"),
        (lambda: seer_pipe.stream(folder, 1000), "96 images are fewer than a batch of 1000"),
    ):
        with pytest.raises(UserError, match=message):
            call()  # type: ignore[no-untyped-call]
    with pytest.raises(TypeError, match="has no length"):
        len(seer_pipe.stream(folder, BATCH, epochs=None))
    endless = iter(seer_pipe.stream(folder, BATCH, epochs=None, start=1000))
    assert next(endless)["jpg"].decode() == planned(folder, range(1000, 1001))[0][0]
