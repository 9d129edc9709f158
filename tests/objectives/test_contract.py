"""What every objective keeps, whatever it minimises: one contract, over the union and over one that a test brings."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.distributed as dist
import yaml
from torch import Tensor
from typer.testing import CliRunner

from seer_pipe import config as settings
from seer_pipe.cli import app
from seer_pipe.data.layouts import labels
from seer_pipe.data.views import draw
from seer_pipe.distributed.collectives import rank, world_size
from seer_pipe.distributed.world import World
from seer_pipe.errors import UserError
from seer_pipe.evaluate.subject import load_subject
from seer_pipe.evaluate.vocabulary import write_vocabulary
from seer_pipe.models import init_weights
from seer_pipe.objectives import AnySettings
from seer_pipe.objectives.base import Moment
from seer_pipe.objectives.settings import Settings, Setup
from seer_pipe.quickstart.draw import KINDS
from seer_pipe.run import start
from seer_pipe.section import members
from seer_pipe.train import syncbn
from seer_pipe.train.build import begin_copies, build_crops, build_optimizer, outline, spread_network
from seer_pipe.train.health import Guard
from seer_pipe.train.step import TrainStep
from seer_pipe.train.traffic import traffic
from tests.distributed import run_ranks
from tests.media import make_clips, make_pairs, make_tracks
from tests.objectives.align import AlignSettings
from tests.objectives.cases import BATCH, CASES, Case
from tests.objectives.runs import quiet, resumed_from, spoil
from tests.objectives.union import join, joined
from tests.objectives.vocabularies import drawn
from tests.train.helpers import assert_same_run, losses, make_pictures, small, weights
from tests.train.null_streams import null_streams
from tests.train.test_step import ALONE
from tests.train.test_traffic import Counted

STEPS, TOTAL = 6, 1000
BY_DEFAULT = ["swav", "byol"]  # one with clusters and a queue, one with momentum copies; the others in the slow set
OTHERS = [name for name in CASES if name not in BY_DEFAULT]
slow = pytest.mark.slow
every = pytest.mark.parametrize("name", [*BY_DEFAULT, *(pytest.param(name, marks=slow) for name in OTHERS)])
on_ranks = pytest.mark.parametrize(
    ("world", "names"),
    [(2, BY_DEFAULT), pytest.param(2, OTHERS, marks=slow), pytest.param(4, list(CASES), marks=slow)],
    ids=["2", "2-others", "4"],
)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = make_pictures(tmp_path_factory.mktemp("pictures"), [13, 0, 1, 20])
    write_vocabulary(str(folder), folder / "vocabulary", labels="folder")
    make_pairs(heard(folder), 34)
    make_tracks(tracked(folder), 34)
    make_clips(filmed(folder), 34, sounds=True)
    return folder


def heard(pictures: Path | str) -> Path:
    """The set of pictures with their sounds, beside that of pictures alone."""
    return Path(f"{pictures}-heard")


def tracked(pictures: Path | str) -> Path:
    """The set of pairs of pictures."""
    return Path(f"{pictures}-tracked")


def filmed(pictures: Path | str) -> Path:
    """The set of clips."""
    return Path(f"{pictures}-filmed")


def set_for(pictures: Path | str, case: Case) -> Path | str:
    if case.frames is not None:
        return filmed(pictures)
    if case.sound is not None:
        return heard(pictures)
    return tracked(pictures) if case.pictures == 2 else pictures


@pytest.fixture(autouse=True, scope="module")
def _listed() -> Iterator[None]:
    with joined(AlignSettings):
        yield


@pytest.fixture(scope="module")
def runs(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """A finished run of an objective, through the entry of ``seer-pipe train``."""
    folder = tmp_path_factory.mktemp("runs")

    @cache
    def trained(name: str) -> Path:
        assert start(recipe(pictures, name), folder / name, say=quiet)
        return folder / name

    return trained


def recipe(
    pictures: Path | str, name: str, crops: int | None = None, objective: dict[str, Any] | None = None, **train: Any
) -> settings.Config:
    case = CASES[name]
    group = {"count": crops or case.crops, "size": 16, "scale": [0.3, 1], "layout": case.layout, "grid": case.grid}
    patches = [{**group, "count": 1, "layout": "shuffled_grid"}] if case.patches else []
    chosen = case.objective | (objective or {})
    if "vocabulary" in chosen:
        most = 1 if name == "supervised" else 3
        chosen["vocabulary"] = (
            drawn(TOTAL, len(KINDS), most) if pictures == "unused" else str(Path(pictures, "vocabulary"))
        )
    data = set_for(pictures, case)
    return small(
        data,
        views={
            "crops": [group, *patches],
            "sound": case.sound,
            "pictures": case.pictures,
            "frames": case.frames,
        },
        model={"name": case.trunk, "norm": case.norm},
        objective=chosen,
        optimizer={"name": "sgd", "lr": 0.5, "warmup_images": 16},
        probe={"path": str(data), "every_images": STEPS * BATCH},
        train={"batch": BATCH, "images": STEPS * BATCH, "checkpoint_every": 1, "keep": 100, **train},
    )


def seer_pipe(*words: object, code: int = 0) -> str:
    result = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert result.exit_code == code, result.output
    return result.output


def test_every_objective_of_the_union_is_here() -> None:
    kinds = [kind for kind in members(AnySettings) if issubclass(kind, Settings)]
    names = {get_args(kind.model_fields["name"].annotation)[0] for kind in kinds}
    assert {case.objective["name"] for case in CASES.values()} == names | {"align"}


def test_every_setting_is_on_the_page() -> None:
    """Those of a new objective too: python -m seer_pipe.describe > docs/settings.md, where every field has a
    description (tests/test_describe.py)."""
    words = [sys.executable, "-m", "seer_pipe.describe"]  # a process of its own: here the union has one more
    page = subprocess.run(words, capture_output=True, text=True, check=True).stdout
    assert (Path(__file__).parents[2] / "docs/settings.md").read_text() == page


@every
def test_trained_examined_evaluated_exported(
    name: str, runs: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    run, problem = runs(name), CASES[name].problem
    assert all(tensor.isfinite().all() for tensor in weights(run).values())
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(recipe(pictures, name).model_dump(mode="json")))
    assert problem in seer_pipe("doctor", tmp_path / "recipe.yaml", "--gpus", 2, code=1 if problem else 0)
    data = recipe(pictures, name).data.path
    assert "accuracy" in seer_pipe("eval", "knn", run, "--data", data, "--labels", "folder")
    seer_pipe("embed", run, data, "--out", tmp_path / "embeddings.parquet")
    seer_pipe("export", run, "--out", tmp_path / "backbone", "--format", "full")
    seer_pipe("report", run, "--out", tmp_path / "report")
    seer_pipe("atlas", run, "--out", tmp_path / "atlas", "--embeddings", tmp_path / "embeddings.parquet")
    exported, trained = load_subject(tmp_path / "backbone"), load_subject(run)
    assert exported.digest == trained.digest  # trunk and head
    assert exported.objective == trained.objective == recipe(pictures, name).objective


@every
def test_resumed_bit_for_bit(name: str, runs: Callable[[str], Path], pictures: Path) -> None:
    assert_same_run(runs(name), resumed_from(recipe(pictures, name), runs(name), 3))


@every
def test_a_bad_step_takes_back_all_state(
    name: str, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen = spoil(monkeypatch, 3 * BATCH)
    assert start(recipe(pictures, name), tmp_path / "run", say=quiet)
    ((before, after),) = seen
    changed = {key for key in before if not torch.allclose(before[key], after[key], rtol=1e-6, atol=1e-7)}
    assert not changed
    assert all(tensor.isfinite().all() for tensor in weights(tmp_path / "run").values())


@every
def test_other_views_are_refused_at_start(name: str) -> None:
    for crops in CASES[name].wrong:
        with pytest.raises(UserError, match=rf"objective {name} needs .*views has {crops}"):
            recipe("unused", name, crops)


def ids(ranks: int = 1, rank: int = 0) -> Tensor:
    """Of a batch of different images that lie far apart in the set, this rank's."""
    return (torch.arange(BATCH) * (TOTAL // BATCH)).chunk(ranks)[rank]


def moment(config: settings.Config, images: int, world: World = ALONE) -> Moment:
    """Of a batch of ``ids``, with ``images`` seen, and this rank's labels of the views' geometry."""
    share = BATCH // world.size
    own, side, crops = ids(world.size, world.rank), np.full(share, 50), build_crops(config)
    known = labels(draw(config.seed, 0, own.numpy(), side, side, crops), crops)
    return Moment(images, TOTAL, own, torch.zeros(share, dtype=torch.int64), known)


def exact(name: str) -> tuple[Tensor, dict[str, Tensor]]:
    """Loss and gradient of a global batch in float64, by however many ranks there are, after the state has seen one."""
    config = recipe("unused", name, objective=CASES[name].exact)
    network = outline(config)
    if dist.is_initialized():
        syncbn.convert(network, None)
    network.to_empty(device="cpu")
    init_weights(network, begin := torch.Generator().manual_seed(0))
    for parameter in network.parameters():
        if not parameter.any():  # what begins at zero passes no gradient on
            torch.nn.init.normal_(parameter, 0, 0.1, generator=begin)
    begin_copies(network)
    network.double()
    objective = config.objective.objective(network, Setup(config.views, 0, TOTAL, torch.device("cpu"), BATCH))
    generator, world = torch.Generator().manual_seed(1), World(rank(), world_size(), torch.device("cpu"))
    for step in range(2):
        drawn = [torch.randn(BATCH, *shape, generator=generator).double() for shape in config.views.shapes]
        crops = [crop.chunk(world.size)[world.rank] for crop in drawn]
        now = moment(config, step * BATCH, world)
        if step and objective.refresh_images is not None:
            objective.refresh(1, now)
        objective.before_step(now)
        loss, metrics = objective.loss(network(crops), now, log=True)
    loss.backward()
    gradients = {key: p.grad / world.size for key, p in network.named_parameters() if p.grad is not None}
    if dist.is_initialized():
        for gradient in gradients.values():
            dist.all_reduce(gradient)
    return metrics["loss"], gradients


def exact_each(names: list[str]) -> list[tuple[Tensor, dict[str, Tensor]]]:
    join(AlignSettings)
    return [exact(name) for name in names]


@on_ranks
def test_ranks_are_one_process_in_float64(world: int, names: list[str]) -> None:
    for name, found in zip(names, run_ranks(world, exact_each, names)[0], strict=True):
        loss, gradients = exact(name)
        assert abs(found[0] - loss) < 1e-9 * abs(loss), name
        largest = max(gradient.abs().max() for gradient in gradients.values())
        for key, gradient in gradients.items():
            assert (found[1][key] - gradient).abs().max() < 1e-9 * largest, f"{name}: {key}"


def as_ranks(names: list[str], pictures: str, folder: str) -> list[dict[str, tuple[int, int]]]:
    as_replicas(names, pictures, folder, "fsdp2")
    return [sent(recipe("unused", name, parallel="fsdp2")) for name in names]


def as_replicas(names: list[str], pictures: str, folder: str, parallel: str = "ddp") -> None:
    join(AlignSettings)
    for name in names:
        assert start(recipe(pictures, name, parallel=parallel), Path(folder, name), say=quiet)


def first_steps_agree(one: Path, other: Path) -> bool:
    before, after = losses(one), losses(other)
    return max(abs(before[step] - after[step]) for step in (1, 2, 3)) < 1e-4


def sent(config: settings.Config) -> dict[str, tuple[int, int]]:
    """Collectives of a step, {kind: (calls, bytes)}."""
    world = World(dist.get_rank(), dist.get_world_size(), torch.device("cpu"))
    made = spread_network(config, world, TOTAL)
    optimizer = build_optimizer(config.optimizer, made.network)
    step = TrainStep(config, settings.derive(config, TOTAL, world.size), made, optimizer, world,
                     Guard(made.network, optimizer, made.objective, world.device))  # fmt: skip
    images = BATCH // world.size
    crops = [torch.randn(images, *shape) for shape in config.views.shapes]
    for number in range(4):  # a queue is filled
        with Counted() as mode:
            step(crops, moment(config, number * BATCH, world), log=False)
    return {kind: (calls, mode.bytes[kind]) for kind, calls in mode.calls.items()}


def predicted(config: settings.Config, world: int) -> dict[str, tuple[int, int]]:
    calls: dict[str, tuple[int, int]] = {}
    for some in traffic(config, world):
        before = calls.get(some.kind, (0, 0))
        calls[some.kind] = before[0] + some.calls, before[1] + some.bytes
    return calls


@on_ranks
def test_ranks_are_one_process_and_send_what_is_predicted(
    world: int, names: list[str], runs: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    counted = run_ranks(world, as_ranks, names, str(pictures), str(tmp_path))[0]
    for name, found in zip(names, counted, strict=True):
        assert first_steps_agree(runs(name), tmp_path / name), name
        assert found == predicted(recipe(pictures, name, parallel="fsdp2"), world), name


@slow
def test_replicas_are_one_process(runs: Callable[[str], Path], pictures: Path, tmp_path: Path) -> None:
    run_ranks(2, as_replicas, list(CASES), str(pictures), str(tmp_path))
    assert not [name for name in CASES if not first_steps_agree(runs(name), tmp_path / name)]


def by_fairscale(names: list[str], pictures: str, folder: str) -> list[dict[str, tuple[int, int]]]:
    with null_streams():
        as_replicas(names, pictures, folder, "fairscale")
        return [sent(recipe("unused", name, parallel="fairscale")) for name in names]


@slow
def test_ranks_of_fairscale_are_one_process_and_send_what_is_predicted(
    runs: Callable[[str], Path], pictures: Path, tmp_path: Path
) -> None:
    counted = run_ranks(2, by_fairscale, list(CASES), str(pictures), str(tmp_path))[0]
    for name, found in zip(CASES, counted, strict=True):
        assert first_steps_agree(runs(name), tmp_path / name), name
        assert name == "swav" or found == predicted(recipe(pictures, name, parallel="fairscale"), 2), name


@every
def test_pieces_are_the_whole(name: str) -> None:
    """Of a trunk and head whose BatchNorm does not depend on the batch."""
    found = []
    for pieces in (1, 2):
        config = recipe("unused", name, accumulate=pieces)
        made = spread_network(config, ALONE, TOTAL)
        made.network.eval()
        optimizer = build_optimizer(config.optimizer, made.network)
        guard = Guard(made.network, optimizer, made.objective, torch.device("cpu"))
        step = TrainStep(config, settings.derive(config, TOTAL), made, optimizer, ALONE, guard)
        generator = torch.Generator().manual_seed(0)
        for number in range(3):
            crops = [torch.randn(BATCH, *shape, generator=generator) for shape in config.views.shapes]
            told = step(crops, moment(config, (number + 2) * BATCH), log=True)
        found.append((float(told["loss"]), dict(made.network.named_parameters())))
    assert abs(found[0][0] - found[1][0]) < 1e-5
    for key, parameter in found[0][1].items():
        torch.testing.assert_close(found[1][1][key], parameter, rtol=1e-4, atol=1e-6, msg=key)
