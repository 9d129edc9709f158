"""fairscale's engine: gloo ranks, with null streams in the place of CUDA's, against the single process and FSDP2."""

import importlib.util
import os
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import SGD

from seer_pipe import config as settings
from seer_pipe.distributed import parts
from seer_pipe.distributed.world import World
from seer_pipe.errors import UserError
from seer_pipe.store import FolderStore
from seer_pipe.train import build
from seer_pipe.train.build import build_network, build_optimizer, spread_network
from seer_pipe.train.checkpoint import Checkpoints
from seer_pipe.train.engines import check_engine
from seer_pipe.train.loop import train
from seer_pipe.train.restore import restore, run_state, zero_state
from seer_pipe.train.step import TrainStep
from tests.distributed import run_ranks, whole
from tests.objectives.moments import at
from tests.train.helpers import losses, make_pictures, small, weights
from tests.train.null_streams import null_streams
from tests.train.test_build import LiveBytes
from tests.train.test_build import recipe as regnet
from tests.train.test_step import (
    BATCH,
    CLIPPED,
    EVERYTHING,
    NOTHING,
    SWITCHES,
    WITHOUT_GRADIENT,
    TinyTrunk,
    assert_equal,
    crops_of,
    guard,
    half,
    recipe,
    run,
)

FAIRSCALE = {"parallel": "fairscale"}
CPU = torch.device("cpu")


def stepped(choices: list[dict[str, Any]], steps: int) -> list[Any]:
    with null_streams():
        return [run(choice, FAIRSCALE, steps) for choice in choices]


def replicated(choice: dict[str, Any], steps: int) -> Any:
    return run(choice, {"parallel": "ddp"}, steps)


def compare(choices: list[dict[str, Any]], world: int, steps: int) -> None:
    """fairscale on some ranks against one process; where ranks have BatchNorms of their own, against DDP."""
    ranks = run_ranks(world, stepped, choices, steps)
    for choice, of_ranks in zip(choices, zip(*ranks, strict=True), strict=True):
        if choice["sync_bn"]:
            meant = [run(choice, {}, steps, world)] * world
        else:
            meant = run_ranks(world, replicated, choice, steps)
        for expected, sharded in zip(meant, of_ranks, strict=True):
            assert_equal(expected, sharded)
        assert abs(meant[0][0][0] - meant[0][0][-1]) > 0.01  # what is compared has moved


def test_fairscale_equals_one_process_with_everything_on() -> None:
    compare([EVERYTHING], 2, 4)


def compiled() -> Any:
    compiler = torch.compile
    torch.compile = lambda f, **kw: compiler(f, backend="aot_eager", **kw)
    with null_streams():
        return run(EVERYTHING, FAIRSCALE | {"compile": True}, 3)


@pytest.mark.slow
def test_compiled_blocks_equal_plain_ones() -> None:
    meant = run(EVERYTHING, {}, 3, 2)
    for rank in run_ranks(2, compiled):
        assert_equal(meant, rank)
        assert rank[2] == 0  # compiled in the first step alone


@pytest.mark.slow
@pytest.mark.parametrize(
    ("world", "choices"),
    [(1, [EVERYTHING, CLIPPED]), (2, SWITCHES[::2]), (2, SWITCHES[1::2]), (4, [EVERYTHING, NOTHING, CLIPPED])],
    ids=["one rank", "two ranks, some", "two ranks, others", "four ranks"],
)
def test_fairscale_equals_one_process_over_twenty_steps(choices: list[dict[str, Any]], world: int) -> None:
    compare(choices, world, 20)


def in_halves(precision: str) -> Any:
    with null_streams():
        return half(precision, **FAIRSCALE)


@pytest.mark.slow
def test_half_precision_stays_in_the_network() -> None:
    meant, _ = half("bf16")
    for found, seen in run_ranks(2, in_halves, "bf16"):
        assert found == pytest.approx(meant, abs=0.1)
        assert seen.pop("block") == torch.bfloat16
        assert set(seen.values()) == {torch.float32}


class OddTrunk(TinyTrunk):
    """Numbers of weights that two or three ranks do not divide."""

    width, stages = 7, ((7, 1), (7, 1))

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 7, 3, 2, 1, bias=False)
        self.residual = nn.ModuleList(
            nn.Sequential(nn.BatchNorm2d(7), nn.ReLU(), nn.Conv2d(7, 7, 3, 1, 1, bias=False)) for _ in range(2)
        )


def built(train: dict[str, Any], optimizer: str) -> TrainStep:
    """A step of this rank, of an odd trunk."""
    rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    world = World(rank, ranks, CPU)
    config = recipe(EVERYTHING | {"optimizer": optimizer}, **train)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_trunk", lambda *_, **__: OddTrunk())
        made = spread_network(config, world)
    moved_by = build_optimizer(config.optimizer, made.network)
    zero_state(moved_by)
    return TrainStep(config, settings.derive(config, 1000, ranks), made, moved_by, world, guard(made, moved_by))


def state_of(step: TrainStep) -> dict[str, Tensor]:
    return run_state(step._network, step._optimizer, step._objective)


def three_steps(train: dict[str, Any], optimizer: str, like: int) -> list[dict[str, Tensor]]:
    """The state after each of three steps. In the second, the last image of the batch is not a number."""
    with null_streams():
        step, found = built(train, optimizer), []
        rank, ranks = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        for number in range(3):
            crops = crops_of(number, step._config, rank, ranks, like)
            if number == 1 and rank == ranks - 1:
                crops[0][-1].fill_(torch.nan)
            step(crops, at(number * BATCH), log=False)
            found.append({name: whole(tensor).clone() for name, tensor in state_of(step).items()})
        for parameter in step._network.parameters():
            if (flat := parts.flat_part(parameter)) is not None:
                assert not parameter[flat.stop - flat.start :].any()  # what fills it up
        return found


@pytest.mark.parametrize("optimizer", ["lars", "adamw"])
def test_a_bad_step_is_taken_back_and_odd_weights_are_those_of_one_process(optimizer: str) -> None:
    alone = three_steps({}, optimizer, 2)
    for first, bad, last in run_ranks(2, three_steps, FAIRSCALE, optimizer, 2):
        for name, tensor in first.items():
            assert torch.equal(bad[name], tensor) or name.endswith("prototypes.weight")  # normalised before the step
            if not name.startswith("objective/") and not any(other in name for other in WITHOUT_GRADIENT):
                torch.testing.assert_close(last[name], alone[2][name], rtol=1e-4, atol=1e-4, msg=name)
        assert not torch.equal(last["network/trunk.stem.weight"], first["network/trunk.stem.weight"])


def saved(folder: str, train: dict[str, Any]) -> None:
    """A checkpoint of first weights, with something to be told apart in the optimiser's state."""
    with null_streams():
        tensors = state_of(built(train, "adamw"))
        for number, (name, tensor) in enumerate(sorted(tensors.items())):
            if name.startswith("optimizer/") and tensor.ndim:
                values = torch.randn(parts.whole_shape(tensor), generator=torch.Generator().manual_seed(number))
                parts.assign(tensor, values)
        checkpoints = Checkpoints(FolderStore(folder), dist.new_group() if dist.is_initialized() else None)
        checkpoints.save(1, tensors, {})
        checkpoints.wait()
        assert checkpoints.problem is None  # saved beside the training


def loaded(folder: str, train: dict[str, Any]) -> dict[str, Tensor]:
    """All of a checkpoint's tensors, as a run has them that resumes from it."""
    with null_streams():
        step = built(train, "adamw")
        tensors = state_of(step)
        for tensor in tensors.values():
            parts.assign(tensor, torch.full(parts.whole_shape(tensor), 7, dtype=tensor.dtype))
        group = dist.new_group() if dist.is_initialized() else None
        found = Checkpoints(FolderStore(folder), group).open(1)
        restore(found, step._network, step._optimizer, step._objective, group)
        return {name: whole(tensor) for name, tensor in tensors.items()}


WAYS: list[tuple[int, dict[str, Any]]] = [(3, FAIRSCALE), (2, {"parallel": "fsdp2"}), (1, {})]


@pytest.mark.parametrize("way", [WAYS[0], *(pytest.param(way, marks=pytest.mark.slow) for way in WAYS[1:])],
                         ids=["fairscale", "fsdp2", "one process"])  # fmt: skip
def test_a_checkpoint_does_not_tell_how_its_run_was_sharded(tmp_path: Path, way: tuple[int, dict[str, Any]]) -> None:
    """What any engine wrote on any number of ranks, every other reads."""
    world, how = way
    if world == 1:
        saved(str(tmp_path), how)
    else:
        run_ranks(world, saved, str(tmp_path), how)
    found = Checkpoints(FolderStore(tmp_path)).open(1)
    meant = {f"{part}/{name}": tensor for part in ("network", "optimizer", "objective")
             for name, tensor in found.whole(part).items()}  # fmt: skip
    for other, how in WAYS:
        ranks = [loaded(str(tmp_path), how)] if other == 1 else run_ranks(other, loaded, str(tmp_path), how)
        for rank in ranks:
            assert rank.keys() == meant.keys()
            assert [name for name in meant if not torch.equal(rank[name], meant[name])] == []


def trained(pictures: str, folder: str, how: dict[str, Any], stop: int | None) -> None:
    """A run to its end, or asked to stop after so many steps."""

    def say(line: str) -> None:
        if stop is not None and line.startswith(f"step {stop}/"):
            os.kill(os.getpid(), signal.SIGTERM)

    with null_streams(), pytest.MonkeyPatch.context() as patch:
        patch.setattr(build, "build_trunk", lambda *_, **__: TinyTrunk())
        train(small(pictures, train=how), Path(folder), say=say)


@pytest.mark.slow
def test_a_run_changes_its_engine_and_its_number_of_ranks(tmp_path: Path) -> None:
    """FSDP2 on two ranks, fairscale on four, one process, fairscale on two: the losses of one process to the end."""
    pictures, moved = str(make_pictures(tmp_path / "pictures", [40])), str(tmp_path / "moved")
    trained(pictures, str(tmp_path / "alone"), {}, None)
    run_ranks(2, trained, pictures, moved, {"parallel": "fsdp2"}, 2)
    run_ranks(4, trained, pictures, moved, FAIRSCALE, 5)
    trained(pictures, moved, {}, 7)
    run_ranks(2, trained, pictures, moved, FAIRSCALE, None)
    alone, other = losses(tmp_path / "alone"), losses(tmp_path / "moved")
    assert alone.keys() == other.keys()
    assert [abs(alone[step] - other[step]) for step in alone] == pytest.approx([0.0] * len(alone), abs=1e-3)
    one, two = weights(tmp_path / "alone"), weights(tmp_path / "moved")
    assert {name: tensor.shape for name, tensor in one.items()} == {name: tensor.shape for name, tensor in two.items()}


def begun() -> tuple[dict[str, Tensor], int]:
    with null_streams(), LiveBytes() as live:
        network = spread_network(regnet(**FAIRSCALE), World(dist.get_rank(), dist.get_world_size(), CPU)).network
    return {name: whole(tensor) for name, tensor in network.state_dict(keep_vars=True).items()}, live.peak


def test_first_weights_are_those_of_one_process_and_never_all_whole() -> None:
    network = build_network(regnet())
    alone = network.state_dict()
    sizes = [4 * parameter.numel() for parameter in network.parameters()]
    unit = max(4 * sum(parameter.numel() for parameter in block.parameters()) for block in network.units())
    buffers = sum(buffer.nbytes for buffer in network.buffers())
    for found, peak in run_ranks(2, begun):
        assert found.keys() == alone.keys()
        assert [name for name in alone if not torch.equal(found[name], alone[name])] == []
        # a rank's share, a unit before it is cut, a tensor as it is drawn and its part of it being copied
        assert peak < sum(sizes) / 2 + unit + 1.5 * max(sizes) + 2 * buffers < sum(sizes)


def overflowing() -> tuple[list[float], float]:
    from seer_pipe.train.fairscale import Scaler

    parameter = nn.Parameter(torch.ones(2))
    optimizer = SGD([parameter], lr=1.0)
    scaler = Scaler("cpu", enabled=True)
    scaler.scale(parameter.sum()).backward()
    if dist.get_rank() == 0:
        parameter.grad.fill_(torch.inf)
    scaler.unscale_(optimizer)
    scaler.step(optimizer)
    scaler.update()
    return parameter.tolist(), scaler.get_scale()


def test_a_part_that_overflows_skips_the_step_on_all_ranks() -> None:
    assert run_ranks(2, overflowing) == [([1.0, 1.0], 2.0**15)] * 2


def test_what_it_cannot_do_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    two = World(0, 2, CPU)
    with pytest.raises(UserError, match="fairscale: it needs CUDA, and this is a cpu; use fsdp2 or ddp"):
        spread_network(recipe(NOTHING, **FAIRSCALE), two)
    with pytest.raises(UserError, match="shard_within: fairscale shards over all ranks"):
        spread_network(recipe(NOTHING, **FAIRSCALE, shard_within=1), two)
    with pytest.raises(UserError, match="one process alone"):
        check_engine(recipe(NOTHING, **FAIRSCALE).train, 1)
    monkeypatch.setattr(importlib.util, "find_spec", lambda _name: None)
    with pytest.raises(UserError, match=r"fairscale: it is not installed: pip install 'seer-pipe\[fairscale\]'"):
        check_engine(recipe(NOTHING, **FAIRSCALE).train, 2)
