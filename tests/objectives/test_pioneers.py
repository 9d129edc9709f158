"""Each way in which the seam of objectives is wide, by a pioneer that needs it, trained through the real entry."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seer_pipe import config as settings
from seer_pipe.errors import UserError
from seer_pipe.objectives.base import Moment
from seer_pipe.run import start
from seer_pipe.train.checkpoint import Checkpoints
from seer_pipe.train.committed import store_of
from tests.distributed import run_ranks
from tests.objectives.pioneers import PIONEERS, Targets
from tests.objectives.runs import quiet, resumed_from, spoil
from tests.objectives.union import join, joined
from tests.train.helpers import assert_same_run, losses, make_pictures, small, weights

STEPS, BATCH = 8, 8
CROPS = {"ring": 2, "bank": 1, "rotation": 1, "targets": 1, "paced": 1}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), [13, 0, 1, 20])


@pytest.fixture(autouse=True)
def _listed() -> Iterator[None]:
    with joined(*PIONEERS):
        yield


def recipe(pictures: Path | str, name: str, **train: Any) -> settings.Config:
    layout = "quarter_turns" if name == "rotation" else "independent"
    return small(
        pictures,
        views={"crops": [{"count": CROPS[name], "size": 16, "scale": [0.3, 1], "layout": layout}]},
        model={"name": "tiny"},
        objective={"name": name},
        optimizer={"name": "sgd", "lr": 1.0, "warmup_images": 16},
        train={"batch": BATCH, "images": STEPS * BATCH, "checkpoint_every": 1, "keep": 100, **train},
    )


def network(run: Path, step: int) -> dict[str, Tensor]:
    return Checkpoints(store_of(run)).open(step).whole("network")


@pytest.mark.parametrize("name", CROPS)
def test_resumed_bit_for_bit(pictures: Path, tmp_path: Path, name: str) -> None:
    """Where 24 images are seen, just before a refresh of the targets, and between two."""
    config = recipe(pictures, name)
    assert start(config, tmp_path / "straight", say=quiet)
    for step in (3, 5):
        assert_same_run(tmp_path / "straight", resumed_from(config, tmp_path / "straight", step))


def test_a_copy_begins_equal_and_follows(pictures: Path, tmp_path: Path) -> None:
    config, run = recipe(pictures, "ring"), tmp_path / "run"
    assert start(config, run, say=quiet)
    before = network(run, 0)
    copied = [name for name in before if name.startswith("key_") and "running" not in name and "batches" not in name]
    assert all(torch.equal(before[name], before[name.removeprefix("key_")]) for name in copied)
    for step in range(1, STEPS + 1):
        after = network(run, step)
        momentum = 1 - 0.1 * (1 - (step - 1) / STEPS)
        for name in copied:
            wanted = momentum * before[name] + (1 - momentum) * after[name.removeprefix("key_")]
            torch.testing.assert_close(after[name], wanted, rtol=1e-6, atol=1e-7)
        before = after
    assert not torch.equal(before["key_head.0.weight"], network(run, 0)["key_head.0.weight"])
    assert not torch.equal(before["key_head.1.running_mean"], before["head.1.running_mean"])  # statistics of its own
    assert not [name for name in weights(run) if name.startswith("optimizer/key_")]


@pytest.mark.parametrize("name", CROPS)
def test_a_bad_step_takes_back_all_state(
    pictures: Path, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spoil(monkeypatch, 4 * BATCH)
    assert start(recipe(pictures, name), tmp_path / "run", say=quiet)
    ((before, after),) = seen
    assert not [key for key in before if not torch.equal(before[key], after[key])]
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())


def test_a_refresh_is_due_once_whatever_the_batch(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers: list[int] = []
    honest = Targets.refresh

    def counted(self: Targets, number: int, moment: Moment) -> None:
        numbers.append(number)
        honest(self, number, moment)

    monkeypatch.setattr(Targets, "refresh", counted)
    assert start(recipe(pictures, "targets"), tmp_path / "straight", say=quiet)
    assert numbers == [1, 2]
    numbers.clear()
    resumed_from(recipe(pictures, "targets", batch=4), tmp_path / "straight", 3, on_purpose={"train.batch"})
    assert numbers == [1, 2]


def test_a_group_keeps_the_peak(pictures: Path, tmp_path: Path) -> None:
    """In the first step of a warm-up from nothing, that group alone moves."""
    assert start(recipe(pictures, "paced", images=BATCH), tmp_path / "run", say=quiet)
    before, after = network(tmp_path / "run", 0), network(tmp_path / "run", 1)
    moved = {name for name in before if not torch.equal(before[name], after[name])}
    assert {name for name in moved if name.endswith(("weight", "bias"))} == {"head.0.weight", "head.0.bias"}


@pytest.mark.parametrize("name", CROPS)
def test_other_views_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=f"objective {name} needs"):
        small("unused", objective={"name": name}, model={"name": "tiny"})  # two large crops, two small ones


def test_turns_show_their_chance(pictures: Path, tmp_path: Path) -> None:
    said: list[str] = []
    assert start(recipe(pictures, "rotation"), tmp_path / "run", say=said.append)
    assert "(chance 1.3863)" in next(line for line in said if line.startswith("step 1/"))


def as_ranks(pictures: str, folder: str) -> None:
    """All that two ranks are to do, in one start of them."""
    join(*PIONEERS)
    for name, parallel in [("ring", "ddp"), *((name, "fsdp2") for name in CROPS)]:
        config = recipe(pictures, name, parallel=parallel)
        assert start(config, Path(folder, f"{name}-{parallel}"), say=quiet)
    assert start(recipe(pictures, "bank", parallel="fsdp2"), Path(folder, "bank-moved"), say=quiet)


@pytest.mark.slow
def test_two_ranks_are_one(pictures: Path, tmp_path: Path) -> None:
    """Sharded and replicated, and state of a run that was begun by one rank, and by two."""
    for name in CROPS:
        assert start(recipe(pictures, name), tmp_path / name, say=quiet)
    shutil.copytree(tmp_path / "bank", tmp_path / "bank-moved")
    Checkpoints(store_of(tmp_path / "bank-moved")).give_up_after(4)
    run_ranks(2, as_ranks, str(pictures), str(tmp_path))
    back = resumed_from(recipe(pictures, "bank"), tmp_path / "bank-fsdp2", 4)
    for run in (*tmp_path.glob("*-fsdp2"), *tmp_path.glob("*-ddp"), tmp_path / "bank-moved", back):
        alone = tmp_path / run.name.partition("-")[0]
        one, other = losses(alone), losses(run)
        assert max(abs(one[step] - other[step]) for step in (1, 2, 3)) < 1e-5, run.name
        assert max(abs(one[step] - other[step]) for step in one) < 1e-3, run.name
        for key, tensor in weights(alone).items():
            torch.testing.assert_close(weights(run)[key], tensor, rtol=1e-2, atol=1e-3, msg=f"{run.name}: {key}")
