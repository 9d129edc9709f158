"""A run that knows when it is ill: steps taken back, rollbacks, silent ranks ended."""

import json
import math
import os
import signal
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

from seer_pipe import config as settings
from seer_pipe.data.loader import Batch, Loader
from seer_pipe.distributed.world import World
from seer_pipe.errors import UserError
from seer_pipe.objectives.base import Objective
from seer_pipe.objectives.swav.objective import Swav
from seer_pipe.objectives.swav.settings import SwavSettings
from seer_pipe.optim.larc import Larc
from seer_pipe.report.charts import MORE_PANELS
from seer_pipe.train.doctor import training_flops
from seer_pipe.train.events import read_events
from seer_pipe.train.health import Guard, Policy, Signs
from seer_pipe.train.loop import train
from seer_pipe.train.machine import peak_flops, peak_memory
from seer_pipe.train.parallel import shard
from seer_pipe.train.restore import zero_state
from seer_pipe.train.telemetry import OVER_RANKS, over_ranks, read_metrics
from tests.distributed import run_ranks
from tests.train.helpers import Ranks, assert_same_run, make_pictures, small


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), [13, 0, 1, 20])


def whole_state(network: nn.Module, optimizer: Optimizer) -> list[torch.Tensor]:
    kept = [value for state in optimizer.state.values() for value in state.values()]
    return [tensor.detach().clone() for tensor in [*network.state_dict().values(), *kept]]


@pytest.mark.parametrize("make", [
    lambda p: Larc(p, lr=0.0), lambda p: SGD(p, lr=0.0, momentum=0.9), lambda p: AdamW(p, lr=0.0),
], ids=["larc", "sgd", "adamw"])  # fmt: skip
def test_a_bad_step_leaves_no_trace(make: Any) -> None:
    """Parameters, running statistics and optimiser state are those of a run without it, bit for bit."""
    finished = []
    for spoiled in (False, True):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 1))
        optimizer = make(network.parameters())
        zero_state(optimizer)
        guard = Guard(network, optimizer, Objective(), torch.device("cpu"))
        optimizer.param_groups[0]["lr"] = 0.1
        batches = [torch.randn(6, 4, generator=torch.Generator().manual_seed(step)) for step in range(4)]
        if spoiled:
            batches.insert(2, torch.full((6, 4), torch.nan))
        for batch in batches:
            guard.keep()
            loss = network(batch).square().mean()
            optimizer.zero_grad()
            loss.backward()
            guard.check(loss)
            optimizer.step()
            guard.settle()
        assert [verdict.bad for verdict in guard.verdicts(all_steps=True)] == [bool(b.isnan().any()) for b in batches]
        finished.append(whole_state(network, optimizer))
    assert all(torch.equal(one, other) for one, other in zip(*finished, strict=True))


def test_the_state_of_an_optimiser_begins_at_zero_whoever_makes_it() -> None:
    """Making it beforehand changes no step."""
    finished = []
    for early in (False, True):
        torch.manual_seed(0)
        network = nn.Linear(4, 2)
        optimizer = AdamW(network.parameters(), lr=0.0)
        if early:
            zero_state(optimizer)
        optimizer.param_groups[0]["lr"] = 0.1
        for _ in range(3):
            optimizer.zero_grad()
            network(torch.ones(3, 4)).square().sum().backward()
            optimizer.step()
        finished.append(whole_state(network, optimizer))
    assert all(torch.equal(one, other) for one, other in zip(*finished, strict=True))


def test_verdicts_come_a_step_later() -> None:
    network = nn.Linear(2, 1)
    guard = Guard(network, SGD(network.parameters(), lr=0.0), Objective(), torch.device("cpu"))
    for value, expected in ((1.0, []), (torch.nan, [False]), (1.0, [True])):
        network.zero_grad()
        (network(torch.ones(1, 2)).sum() * value).backward()
        guard.check(torch.tensor(value))
        assert [verdict.bad for verdict in guard.verdicts()] == expected
    assert [verdict.bad for verdict in guard.verdicts(all_steps=True)] == [False]


def test_the_policy_skips_then_rolls_back_then_stops() -> None:
    policy = Policy(settings.Health(max_skips=2, max_rollbacks=1))
    assert [policy.judge(bad) for bad in (True, False, True, True, True)] == ["skip", "on", "skip", "skip", "rollback"]
    policy.rollbacks += 1
    assert policy.judge(True) == "stop"


def spoil(bad_calls: set[int], rank: int = 0) -> None:
    """In this process, make the loss of the given calls NaN on one rank."""
    honest, calls = Swav.loss, [0]

    def loss(self: Swav, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        value, metrics = honest(self, *args, **kwargs)
        here = dist.get_rank() if dist.is_initialized() else 0
        return (value * torch.nan if calls[0] in bad_calls and here == rank else value), metrics

    Swav.loss = loss  # type: ignore[method-assign]


@pytest.fixture
def honest_loss() -> Any:
    kept = Swav.loss
    yield
    Swav.loss = kept  # type: ignore[method-assign]


def test_a_few_bad_steps_are_skipped(pictures: Path, tmp_path: Path, honest_loss: None) -> None:
    spoil({4, 5})
    assert train(small(pictures), tmp_path / "run", say=lambda _: None)
    told = [event for event in read_events(tmp_path / "run") if event["event"] == "skip"]
    assert [(event["step"], event["what"], event["rank"]) for event in told] == [(4, "loss", 0), (5, "loss", 0)]
    assert [row["step"] for row in read_metrics(tmp_path / "run")] == list(range(1, 13))
    json.loads((tmp_path / "run/metrics.jsonl").read_text().splitlines()[3], parse_constant=pytest.fail)


@pytest.mark.slow
def test_many_roll_back_to_other_data(pictures: Path, tmp_path: Path, honest_loss: None) -> None:
    """Calls 8 to 10 are bad, so the run goes back to step 6 and on with the batch after the third bad one."""
    spoil({8, 9, 10})
    config = small(pictures, health={"max_skips": 2, "rollback_lr": 0.5})
    assert train(config, tmp_path / "run", say=lambda _: None)
    told = {event["event"]: event for event in read_events(tmp_path / "run")}
    rolled = told["rollback"]
    assert (rolled["step"], rolled["sick"], rolled["offset"], rolled["rate_factor"]) == (6, 10, 4, 0.5)
    rows = read_metrics(tmp_path / "run")
    assert [row["step"] for row in rows] == list(range(1, 13))
    assert all("loss" in row for row in rows)


@pytest.mark.slow
def test_a_run_that_is_stopped_while_it_is_ill_goes_on_exactly(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three batches are bad. Asked to stop between two of them, and again after the rollback, it ends as if not."""
    honest = Loader._make

    def make(self: Loader, step: int, samples: Any) -> Batch:
        batch = honest(self, step, samples)
        if step in (7, 8, 9):
            for crop in batch.crops:
                crop.fill_(torch.nan)
        return batch

    monkeypatch.setattr(Loader, "_make", make)
    config = small(pictures, health={"max_skips": 2, "rollback_lr": 0.5})
    assert train(config, tmp_path / "straight", say=lambda _: None)
    for line in "step 7/", "rolled back":

        def ask(said: str, line: str = line) -> None:
            if said.startswith(line):
                os.kill(os.getpid(), signal.SIGTERM)

        assert not train(config, tmp_path / "stopped", say=ask)
    assert train(config, tmp_path / "stopped", say=lambda _: None)
    first, second = [event["step"] for event in read_events(tmp_path / "stopped") if event["event"] == "stop"]
    assert first in (8, 9)  # bad ones both
    assert 6 < second < first
    told = {run: [event for event in read_events(tmp_path / run) if event["event"] in ("skip", "rollback")]
            for run in ("straight", "stopped")}  # fmt: skip
    without_time = [[event | {"time": None} for event in events] for events in told.values()]
    assert [event["event"] for event in told["straight"]] == ["skip", "skip", "skip", "rollback"]
    assert without_time[0] == without_time[1]
    assert_same_run(tmp_path / "straight", tmp_path / "stopped")


def test_a_run_that_stays_ill_stops(pictures: Path, tmp_path: Path, honest_loss: None) -> None:
    spoil(set(range(5, 100)))
    config = small(pictures, health={"max_skips": 1, "max_rollbacks": 1})
    with pytest.raises(UserError, match="not finite in 2 steps in a row, and 1 rollbacks did not help"):
        train(config, tmp_path / "run", say=lambda _: None)
    kinds = [event["event"] for event in read_events(tmp_path / "run")]
    assert kinds.count("rollback") == 1
    assert kinds[-1] == "error"


def ill_rank(data: str, run: str, parallel: str) -> tuple[list[Any], float]:
    """Of two ranks, of which the second holds 300 MB more: the skipped steps, and the peak of this one's memory."""
    spoil({4}, rank=1)
    held = torch.ones(dist.get_rank() * 75_000_000)
    assert train(small(Path(data), train={"parallel": parallel}), Path(run), say=lambda _: None)
    del held
    return [event for event in read_events(Path(run)) if event["event"] == "skip"], peak_memory(torch.device("cpu"))


@pytest.mark.slow
@pytest.mark.parametrize("parallel", ["ddp", "fsdp2"])
def test_a_bad_loss_of_one_rank_is_skipped_by_all(pictures: Path, tmp_path: Path, parallel: str) -> None:
    found = run_ranks(2, ill_rank, str(pictures), str(tmp_path / "run"), parallel)
    for told, _ in found:
        assert [(event["step"], event["rank"]) for event in told] == [(4, 1)]
    (_, first), (_, second) = found
    assert first < read_metrics(tmp_path / "run")[-1]["memory_gb"] <= second  # the most of all ranks


def test_collapse_is_told_once_with_what_to_try() -> None:
    collapse, told = Signs(SwavSettings(prototypes=20).signs()), []
    healthy = {"loss": 2.5, "code_entropy": 0.5, "prediction_entropy": 2.9, "embedding_std": 0.9,
               "effective_rank": 9.0, "prototypes_dead": 0.1}  # fmt: skip
    for _ in range(30):
        told += collapse.look(healthy, settled=True)
        told += collapse.look(healthy | {"loss": 3.0}, settled=False)
    assert told == []
    for _ in range(30):
        told += collapse.look(healthy | {"loss": 2.99}, settled=True)
    assert len(told) == 1
    assert "freeze_images" in told[0]


def hang(rank: int) -> None:
    """On the second rank, wait for ever in the middle of the fourth step, in C."""
    honest, calls = Swav.loss, [0]

    def never_to_return(self: Swav, *args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == 4 and rank == 1:
            time.sleep(10**6)
        return honest(self, *args, **kwargs)

    Swav.loss = never_to_return  # type: ignore[method-assign]


@pytest.mark.slow
@pytest.mark.parametrize("how", ["in its own code", "stopped"])
def test_a_rank_that_hangs_ends_all(pictures: Path, tmp_path: Path, how: str) -> None:
    """Within the time-out, each with its stack, and the same command goes on from the last checkpoint."""
    run = tmp_path / "run"
    config = small(pictures, health={"timeout": 20.0}, train={"parallel": "ddp", "images": 48})
    ranks = Ranks(config, run, 2, hang if how == "in its own code" else None)
    try:
        ranks.until("step 3/")
        if how == "stopped":
            os.kill(ranks.processes[1].pid, signal.SIGSTOP)
        ranks.processes[0].join(200)
        assert ranks.processes[0].exitcode not in (0, None)
        if how == "in its own code":  # whose time is over first is chance: the other then ends for want of it
            ranks.processes[1].join(200)
        ended, where = (0, "in loop") if how == "stopped" else (1, "in never_to_return")
        assert "Timeout (0:00:20)!" in ranks.errors(ended)
        assert where in ranks.errors(ended)
    finally:
        ranks.close()
    assert train(small(pictures, train={"images": 48}), run, say=lambda _: None)
    assert [row["step"] for row in read_metrics(run)] == list(range(1, 7))


def gradient_norm(within: int | None, *, sharded: bool) -> float:
    """As the guard finds it on one of several ranks, which all see the same batch."""
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    if sharded:
        world = World(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
        shard(network, [network[0]], world, within)
    guard = Guard(network, SGD(network.parameters(), lr=0.0), Objective(), torch.device("cpu"))
    loss = network(torch.randn(4, 5, generator=torch.Generator().manual_seed(1))).square().sum()
    loss.backward()
    norm = guard.check(loss, norm=True)
    assert norm is not None
    return float(norm)


def test_the_norm_is_of_the_whole_gradient_however_it_is_spread() -> None:
    torch.manual_seed(0)
    network = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3)).double()
    images = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))
    network(images.double()).square().sum().backward()
    expected = float(torch.cat([p.grad.flatten() for p in network.parameters()]).norm())
    for ranks, sharded, within in [(2, False, None), (3, True, None), (4, True, 2)]:
        for norm in run_ranks(ranks, partial(gradient_norm, within, sharded=sharded)):
            assert norm == pytest.approx(expected, rel=1e-6)
    assert gradient_norm(None, sharded=False) == pytest.approx(expected, rel=1e-6)


def test_the_norm_of_the_gradient_is_logged(pictures: Path, tmp_path: Path) -> None:
    assert train(small(pictures, train={"images": 16}), tmp_path / "run", lambda _: None)
    rows = read_metrics(tmp_path / "run")
    assert rows
    assert all(0 < row["grad_norm"] < math.inf for row in rows)
    assert all(row["cpu_cores"] > 0 for row in rows)
    assert not any("gpu_busy" in row for row in rows)  # of a GPU alone


def test_a_number_of_all_ranks_says_what_it_is_of_them() -> None:
    one = {"loss": 2.0, "data_wait": 0.1, "cpu_cores": 1.5, "memory_gb": 3.0, "gpu_busy": 0.5}
    other = {"loss": 2.0, "data_wait": 0.4, "cpu_cores": 2.0, "memory_gb": 2.0, "gpu_busy": 1.0}
    assert over_ranks([one, other]) == {
        "loss": 2.0, "data_wait": 0.4, "cpu_cores": 3.5, "memory_gb": 3.0, "gpu_busy": 0.75
    }  # fmt: skip
    assert over_ranks([one]) == one
    assert set(OVER_RANKS) == {name for panel in MORE_PANELS if "rank" in panel.title for name in panel.metrics}


@pytest.mark.slow
@pytest.mark.parametrize("peak", [None, 1e12])
def test_mfu_is_logged_where_the_peak_is_known(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, peak: float | None
) -> None:
    config = small(pictures, train={"images": 16})
    assert peak_flops(torch.device("cpu"), torch.bfloat16) is None
    monkeypatch.setattr("seer_pipe.train.trainer.peak_flops", lambda *_: peak)
    assert train(config, tmp_path / "run", lambda _: None)
    for row in read_metrics(tmp_path / "run"):
        expected = None if peak is None else pytest.approx(row["images_per_s"] * training_flops(config) / peak)
        assert row.get("mfu") == expected
