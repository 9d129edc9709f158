"""Checkpoints: whole or not there, on any number of ranks, in a folder or on S3."""

import errno
import json
import multiprocessing
import os
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed.checkpoint.staging import DefaultStager
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard, distribute_tensor

from seer_pipe.errors import UserError
from seer_pipe.store import FolderStore, Store, open_store
from seer_pipe.train import checkpoint, storage
from seer_pipe.train.checkpoint import FORMAT_VERSION, Checkpoints, _sealed, _unsealed
from seer_pipe.train.committed import MARKER
from seer_pipe.train.storage import DamagedError
from tests.distributed import run_ranks

SHAPES = {"network/weight": (7, 3), "network/row": (1, 4), "optimizer/weight/momentum_buffer": (7, 3)}


def logical() -> dict[str, torch.Tensor]:
    """Sizes that no world size here divides, one smaller than every world, a scalar and integers."""
    drawn = torch.Generator().manual_seed(0)
    tensors = {name: torch.randn(shape, generator=drawn) for name, shape in SHAPES.items()}
    return tensors | {"network/count": torch.tensor(3), "objective/queue": torch.arange(24).view(2, 3, 4)}


def spread(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    return {
        name: distribute_tensor(tensor, mesh, [Shard(0)]) if name in SHAPES else tensor
        for name, tensor in tensors.items()
    }


def save(store: Store, step: int, tensors: dict[str, torch.Tensor] | None = None, **how: Any) -> None:
    checkpoints = Checkpoints(store)
    checkpoints.save(step, logical() if tensors is None else tensors, {"images": 8 * step}, **how)
    checkpoints.wait()


def refuses(self: DefaultStager, *_: Any) -> None:
    """As torch 2.11's does with a state whose class it does not know."""
    raise KeyError(type)


@pytest.fixture(params=["at once", "beside the training"])
def broken(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Saving beside the training fails: where it begins, or later, in its thread."""
    if request.param == "at once":
        monkeypatch.setattr(DefaultStager, "stage", refuses)
    else:
        failed: Future[None] = Future()
        failed.set_exception(KeyError(type))
        monkeypatch.setattr(checkpoint.dcp, "async_save", lambda *_, **__: failed)


@pytest.mark.usefixtures("broken")
def test_what_cannot_be_saved_beside_the_training_is_saved_plainly(tmp_path: Path) -> None:
    checkpoints = Checkpoints(FolderStore(tmp_path))
    for step in (1, 2):
        checkpoints.save(step, logical(), {"images": 8 * step})
        checkpoints.wait(unchanged=True)
        assert_whole(FolderStore(tmp_path), step)
    assert repr(checkpoints.problem) == "KeyError(<class 'type'>)"


@pytest.mark.usefixtures("broken")
def test_an_error_names_both_ways_that_failed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage.Writer, "finish", lambda *_, **__: 1 / 0)
    checkpoints = Checkpoints(FolderStore(tmp_path))
    checkpoints.save(1, logical(), {"images": 8})
    with pytest.raises(OSError, match=r"beside the training: KeyError.*plain way: .*ZeroDivisionError"):
        checkpoints.wait(unchanged=True)
    assert checkpoints.steps() == []


def test_a_full_store_is_not_tried_twice(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tries: list[Any] = []

    def full(self: FolderStore, *what: Any) -> None:
        tries.append(what)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FolderStore, "put", full)
    checkpoints = Checkpoints(FolderStore(tmp_path))
    checkpoints.save(1, logical(), {"images": 8})
    with pytest.raises(OSError, match="No space left"):
        checkpoints.wait(unchanged=True)
    once = len(tries)
    assert checkpoints.problem is None
    checkpoints.save(1, logical(), {"images": 8})
    with pytest.raises(OSError, match="No space left"):
        checkpoints.wait()
    assert len(tries) == 2 * once


def assert_whole(store: Store, step: int) -> None:
    found = Checkpoints(store).open(step)
    assert found.state["step"] == step
    for part in ("network", "optimizer", "objective"):
        expected = {name.split("/", 1)[1]: t for name, t in logical().items() if name.startswith(part)}
        tensors = found.whole(part)
        assert tensors.keys() == expected.keys()
        assert all(torch.equal(tensors[name], expected[name]) for name in expected)


def save_as_rank(root: str, change: bool) -> None:
    checkpoints = Checkpoints(FolderStore(root), dist.new_group(backend="gloo"))
    tensors = spread(logical())
    checkpoints.save(5, tensors, {"images": 40})
    if change:  # while the save is under way
        for tensor in tensors.values():
            (tensor.to_local() if isinstance(tensor, DTensor) else tensor).zero_()
        dist.all_reduce(torch.ones(1000))
    checkpoints.wait()


def load_as_rank(root: str) -> bool:
    group = dist.new_group(backend="gloo")
    tensors = spread({name: torch.zeros_like(tensor) for name, tensor in logical().items()})
    Checkpoints(FolderStore(root)).open(5).load(tensors, group)
    expected = spread(logical())
    return all(
        torch.equal(*(x.to_local() if isinstance(x, DTensor) else x for x in (tensors[name], expected[name])))
        for name in tensors
    )


def test_any_number_of_ranks_loads_what_another_saved(tmp_path: Path) -> None:
    """And what is saved are the values at the call, whatever the training does to them afterwards."""
    run_ranks(2, save_as_rank, str(tmp_path), True)
    files = {file.name for file in (tmp_path / "step-00000005").iterdir()}
    assert files == {"00000-0000.safetensors", "00001-0000.safetensors", "index.json", "state.json", MARKER}
    assert_whole(FolderStore(tmp_path), 5)
    assert run_ranks(3, load_as_rank, str(tmp_path)) == [True, True, True]


def test_one_rank_saves_and_three_load(tmp_path: Path) -> None:
    save(FolderStore(tmp_path), 5)
    assert run_ranks(3, load_as_rank, str(tmp_path)) == [True, True, True]


def damage_one_and_load(root: str) -> str:
    if dist.get_rank() == 0:
        file = Path(root, "step-00000005", "00001-0000.safetensors")
        file.write_bytes(file.read_bytes()[:-8] + b"otherwis")
    dist.barrier()
    group = dist.new_group(backend="gloo")
    tensors = spread({name: torch.zeros_like(tensor) for name, tensor in logical().items()})
    with pytest.raises(DamagedError) as told:
        Checkpoints(FolderStore(root)).open(5).load(tensors, group)
    return str(told.value)


def test_a_damaged_file_is_told_on_every_rank(tmp_path: Path) -> None:
    run_ranks(2, save_as_rank, str(tmp_path), False)
    told = run_ranks(2, damage_one_and_load, str(tmp_path))
    assert all("00001-0000.safetensors: not what was committed" in text for text in told)


def test_large_tensors_go_into_several_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "FILE_BYTES", 100)
    store = FolderStore(tmp_path)
    save(store, 1)
    assert len(list(store.list("step-00000001/00000-"))) > 2
    assert_whole(store, 1)


class Dies(FolderStore):
    """Its process ends, as by SIGKILL, before or in the middle of its ``at``-th write."""

    def __init__(self, root: Path, at: int, half: bool) -> None:
        super().__init__(root)
        self._left, self._half = at, half

    def put(self, path: str, data: bytes) -> None:
        self._left -= 1
        if self._left == 0:
            if self._half:
                self._temporary(path).write_bytes(data[: len(data) // 2])
            os._exit(9)
        super().put(path, data)


def save_and_die(root: Path, at: int, half: bool) -> None:
    storage.FILE_BYTES = 100
    storage.WRITERS = 1
    save(Dies(root, at, half), 2)


@pytest.mark.parametrize("half", [False, True], ids=["before", "within"])
def test_a_kill_at_every_write_leaves_the_checkpoint_before(tmp_path: Path, half: bool) -> None:
    store, context = FolderStore(tmp_path), multiprocessing.get_context("fork")
    save(store, 1)
    for at in range(1, 100):
        process = context.Process(target=save_and_die, args=(tmp_path, at, half))
        process.start()
        process.join()
        if process.exitcode == 0:
            break
        assert process.exitcode == 9
        checkpoints = Checkpoints(store)
        assert checkpoints.steps() == [1]
        found = checkpoints.latest(pytest.fail)
        assert found is not None
        assert found.state["step"] == 1
    assert at > 5  # several parts, index, state and marker were reached
    assert Checkpoints(store).steps() == [1, 2]
    assert_whole(store, 2)
    Checkpoints(store).sweep()
    assert not list(tmp_path.rglob(".tmp-*"))


@pytest.mark.parametrize("how", ["truncated", "flipped", "gone"])
@pytest.mark.parametrize("name", ["00000-0000.safetensors", "index.json", "state.json", MARKER])
def test_what_is_damaged_is_passed_over(tmp_path: Path, name: str, how: str) -> None:
    store, told = FolderStore(tmp_path), []
    save(store, 1)
    save(store, 2)
    file = tmp_path / "step-00000002" / name
    data = bytearray(file.read_bytes())
    if how == "gone":
        file.unlink()
    elif how == "truncated":
        file.write_bytes(data[: len(data) // 2])
    else:
        data[data.index(b"sha256") + 20 if name == MARKER else len(data) // 2] ^= 1
        file.write_bytes(data)
    found = Checkpoints(store).latest(told.append)
    assert found is not None
    assert found.state["step"] == 1
    assert len(told) == (0 if (name, how) == (MARKER, "gone") else 1)  # without a marker it does not exist


def test_a_single_bit_that_flips_in_the_marker_is_found(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    save(store, 1, marks={"knn": 0.5})
    file = tmp_path / "step-00000001" / MARKER
    whole = file.read_bytes()
    honest = json.loads(whole)
    for place in range(8 * len(whole)):
        data = bytearray(whole)
        data[place // 8] ^= 1 << place % 8
        file.write_bytes(data)
        try:
            Checkpoints(store).open(1)
        except DamagedError:
            continue
        assert json.loads(data) == honest  # a blank for another


@pytest.mark.parametrize("version", [1, FORMAT_VERSION - 1, 99])
def test_another_format_is_refused(tmp_path: Path, version: int) -> None:
    store = FolderStore(tmp_path)
    save(store, 1)
    path = f"step-00000001/{MARKER}"
    marker = _unsealed(store.get(path)) | {"format_version": version}
    store.put(path, _sealed(marker))
    with pytest.raises(UserError, match=rf"format {version}; this seer_pipe reads format {FORMAT_VERSION}: "):
        Checkpoints(store).latest(pytest.fail)


def test_a_marker_without_a_seal_is_damaged(tmp_path: Path) -> None:
    store = FolderStore(tmp_path)
    save(store, 1)
    path = f"step-00000001/{MARKER}"
    for version in ({}, {"format_version": 1}, {"format_version": 2}):
        store.put(path, json.dumps({**version, "files": {}}).encode())
        with pytest.raises(DamagedError):
            Checkpoints(store).open(1)


def test_what_is_kept(tmp_path: Path) -> None:
    """The newest two, what is marked for ever, the best by kNN; nothing that was not committed; and nothing else."""
    store = FolderStore(tmp_path)
    for step, marks in {1: {"knn": 0.5}, 2: {"keep": True}, 3: {"knn": 0.7}, 4: {}, 5: {"knn": 0.6}, 6: {}}.items():
        save(store, step, marks=marks)
    store.put("step-00000007/00000-0000.safetensors", b"half of it")
    store.put("others/file", b"not ours")
    Checkpoints(store).tidy(keep=2, newest=6)
    kept = [f"step-0000000{step}" for step in (2, 3, 5, 6)]
    assert [file.name for file in sorted(tmp_path.iterdir())] == ["others", *kept]


def test_what_cannot_be_gone_on_from_takes_no_place_of_what_can(tmp_path: Path) -> None:
    """A run that went back to step 2, for 3 and 4 are damaged, keeps its own; and one of a step in health."""
    store = FolderStore(tmp_path)
    for step, marks in {1: {}, 2: {}, 3: {}, 4: {}}.items():
        save(store, step, marks=marks)
    for step in (3, 4):
        (tmp_path / f"step-0000000{step}" / "state.json").unlink()
    Checkpoints(store).tidy(keep=1, newest=2)
    assert Checkpoints(store).steps() == [2, 3, 4]
    save(store, 3, marks={"skipped": 1})
    Checkpoints(store).tidy(keep=1, newest=3)
    assert Checkpoints(store).steps() == [2, 3, 4]
    save(store, 5)
    Checkpoints(store).tidy(keep=1, newest=5)
    assert Checkpoints(store).steps() == [5]


def test_on_s3(s3: Any, tmp_path: Path) -> None:
    s3.create_bucket(Bucket="checkpoints")
    store = open_store("s3://checkpoints/run")
    for step in (1, 2, 3):
        save(store, step)
    store.put("step-00000004/00000-0000.safetensors", b"half of it")
    Checkpoints(store).tidy(keep=2, newest=3)
    assert Checkpoints(store).steps() == [2, 3]
    assert_whole(store, 3)
    assert not list(store.list("step-00000004"))
    assert "Uploads" not in s3.list_multipart_uploads(Bucket="checkpoints")


class Full(FolderStore):
    def put(self, path: str, data: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", path)


def test_a_save_that_fails_says_so_and_the_next_may_succeed(tmp_path: Path) -> None:
    checkpoints = Checkpoints(Full(tmp_path))
    checkpoints.save(1, logical(), {})
    with pytest.raises(OSError, match="No space left"):
        checkpoints.wait()
    checkpoints.store = FolderStore(tmp_path)
    checkpoints.save(2, logical(), {})
    checkpoints.wait()
    assert_whole(FolderStore(tmp_path), 2)
