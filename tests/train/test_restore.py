"""What goes into a checkpoint: statistics that ranks do not share, and which ones are kept for ever."""

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.checkpoint.staging import DefaultStager
from torch.optim import SGD

from seer_pipe import config as settings
from seer_pipe.distributed.world import World
from seer_pipe.objectives.base import Objective
from seer_pipe.store import FolderStore, Store
from seer_pipe.train import syncbn
from seer_pipe.train.checkpoint import Checkpoints
from seer_pipe.train.restore import Saver, zero_state
from seer_pipe.train.trainer import Say
from tests.distributed import run_ranks

ALONE = World(0, 1, torch.device("cpu"))


def saver(store: Store, network: nn.Module, world: World, say: Say = print, **train: Any) -> Saver:
    optimizer = SGD(network.parameters(), lr=0.0, momentum=0.9)
    zero_state(optimizer)
    wanted = settings.Train(batch=8, images=800, **train)

    def silent(*_: Any, **__: Any) -> None: ...

    return Saver(
        store, network=network, optimizer=optimizer, objective=Objective(), train=wanted, identity={}, world=world,
        say=say, log_event=silent,
    )  # fmt: skip


def save(to: Saver, images: int, **state: Any) -> None:
    to.save({"step": images // 8, "images": images, "skipped": 0, **state})
    to.finish(must=True)


def save_unequal(root: str, groups: int | None) -> None:
    rank, size = dist.get_rank(), dist.get_world_size()
    network = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))
    if groups is not None:
        syncbn.convert(network, dist.new_subgroups(group_size=groups)[0])
    network[1].running_mean.fill_(rank // (groups or 1))
    network[1].running_var.fill_(10.0 * (rank // (groups or 1)))
    save(saver(FolderStore(root), network, World(rank, size, torch.device("cpu"))), 8)


@pytest.mark.parametrize(("ranks", "groups"), [(2, None), (4, 2)], ids=["each its own", "in groups"])
def test_statistics_that_ranks_do_not_share_are_made_equal(tmp_path: Path, ranks: int, groups: int | None) -> None:
    """A checkpoint holds one copy, of whichever rank: it is their mean."""
    run_ranks(ranks, save_unequal, str(tmp_path), groups)
    found = Checkpoints(FolderStore(tmp_path)).open(1).whole("network")
    assert found["1.running_mean"].eq(0.5).all()
    assert found["1.running_var"].eq(5.0).all()


def test_one_in_so_many_images_is_kept_for_ever(tmp_path: Path) -> None:
    """The first past each multiple, wherever saves fall, and whichever start made them."""
    kept = [0, 96, 104, 120, 192, 200, 208, 416]
    for images in kept:
        to = saver(FolderStore(tmp_path), nn.Linear(4, 3), ALONE, keep=1, keep_every_images=100)
        to.restore()
        save(to, images)
    assert Checkpoints(FolderStore(tmp_path)).steps() == [104 // 8, 200 // 8, 416 // 8]


def test_a_run_goes_on_where_nothing_can_be_saved_beside_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuses(*_: Any) -> None:
        raise KeyError(type)

    monkeypatch.setattr(DefaultStager, "stage", refuses)
    said: list[str] = []
    to = saver(FolderStore(tmp_path), nn.Linear(4, 3), ALONE, said.append)
    for images in (8, 16):
        save(to, images)
    assert Checkpoints(FolderStore(tmp_path)).steps() == [1, 2]
    (warning,) = said
    assert "waits for them now: KeyError(<class 'type'>)" in warning


class Away(FolderStore):
    """Takes the first file of a save, and no other."""

    def put(self, path: str, data: bytes) -> None:
        if path.endswith(".safetensors"):
            super().put(path, data)
        else:
            raise OSError("gave up after 9 tries")


def test_the_third_save_in_a_row_that_fails_ends_the_run(tmp_path: Path) -> None:
    """And each before it is told, and leaves nothing behind."""
    said: list[str] = []
    to = saver(Away(tmp_path), nn.Linear(4, 3), ALONE, said.append)
    for step in (1, 2, 3):
        to.save({"step": step, "images": 8 * step, "skipped": 0})
    assert said == [
        f"warning: the checkpoint of step {step} could not be saved: gave up after 9 tries; training continues"
        for step in (1, 2)
    ]
    with pytest.raises(OSError, match="gave up"):
        to.finish()
    assert said[-1].endswith("of step 3 could not be saved: gave up after 9 tries; the same command resumes")
    assert not list(tmp_path.iterdir())
