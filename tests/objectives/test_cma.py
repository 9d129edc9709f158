"""CMA against its equations in float64, sample by sample; the search for positives; a kill in the midst of one."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seer_pipe.config import Config
from seer_pipe.distributed.collectives import rank, world_size
from seer_pipe.errors import UserError
from seer_pipe.objectives.bank import Bank
from seer_pipe.objectives.bank_settings import BankSettings
from seer_pipe.objectives.base import Moment
from seer_pipe.objectives.cma import consensus
from seer_pipe.objectives.cma.consensus import agreed
from seer_pipe.objectives.cma.objective import Cma
from seer_pipe.objectives.pairs import Pair
from seer_pipe.objectives.settings import Setup
from seer_pipe.run import start
from seer_pipe.train.build import outline
from seer_pipe.train.checkpoint import Checkpoints
from seer_pipe.train.committed import store_of
from seer_pipe.train.doctor import examine, supposed
from tests.distributed import processes, run_ranks
from tests.media import make_pairs
from tests.objectives.runs import quiet
from tests.objectives.test_avid import (
    DIM,
    EACH,
    SAMPLES,
    STEPS,
    Rows,
    config,
    found_of_new_ones,
    infonce,
    nce,
    outputs,
    write,
)
from tests.objectives.union import join, joined
from tests.train.helpers import assert_same_run

POSITIVES, WITHIN = 2, 5
OBJECTIVE = {"name": "cma", "positives": POSITIVES, "within_negatives": WITHIN, "refresh_images": 16}


@pytest.fixture(autouse=True, scope="module")
def _listed() -> Iterator[None]:
    with joined():
        yield


def objective(crops: int = 1, **changes: Any) -> Cma:
    made = config(crops, **OBJECTIVE | changes)
    found = made.objective.objective(outline(made), Setup(made.views, 3, SAMPLES, torch.device("cpu"), EACH))
    assert isinstance(found, Cma)
    return found


def nearest(banks: tuple[Rows, Rows], positives: int) -> dict[int, list[int]]:
    seen, heard = banks
    least = {i: {j: min(float(seen[i] @ seen[j]), float(heard[i] @ heard[j])) for j in seen if j != i} for i in seen}
    return {i: sorted(near, key=lambda j: -near[j])[:positives] for i, near in least.items()}


def written_out(
    loss: str, pair: Pair, samples: list[int], banks: tuple[Rows, Rows], drawn: list[int], near: dict[int, list[int]]
) -> Tensor:
    """The loss of one step; ``banks`` as they are before it."""
    one = {"nce": nce, "infonce": infonce}[loss]
    z, a = (rows / rows.norm(dim=1, keepdim=True) for rows in pair)
    seen, heard = banks
    terms = []
    for n, i in enumerate(samples):
        if i not in seen:
            continue
        mine = near.get(i, [])
        apart, few = ([j for j in some if j in seen and j not in (i, *mine)] for some in (drawn, drawn[:WITHIN]))
        crops = z[n::EACH]
        to_sounds = torch.stack([one(v, heard[i], [heard[j] for j in apart]) for v in crops]).mean()
        instance = 0.5 * to_sounds + 0.5 * one(a[n], seen[i], [seen[j] for j in apart])
        within = [
            0.5 * torch.stack([one(v, seen[p], [seen[j] for j in few]) for v in crops]).mean()
            + 0.5 * one(a[n], heard[p], [heard[j] for j in few])
            for p in mine
        ]
        terms.append(0.5 * instance + 0.5 * torch.stack(within).mean() if within else instance)
    return torch.stack(terms).mean() if terms else 0 * z.sum() + 0 * a.sum()


@pytest.mark.parametrize(("loss", "crops"), [("nce", 1), ("nce", 3), ("infonce", 1)])
def test_is_the_papers_loss_over_steps(loss: str, crops: int) -> None:
    """Of samples with all their positives, with fewer than there could be, and without any."""
    cma = objective(crops, loss=loss)
    banks: tuple[Rows, Rows] = {}, {}
    near: dict[int, list[int]] = {}
    for step, samples in enumerate([*STEPS, [1, 7, 0, 11], [5, 3, 2, 4], [4, 0, 5, 11]]):
        moment = Moment(EACH * step, 1000, torch.tensor(samples))
        if step in (1, 4):
            cma.refresh(step, moment)
            near = nearest(banks, POSITIVES)
        pair = outputs(crops, step)
        found, _ = cma.loss(pair, moment)
        wanted = written_out(loss, pair, samples, banks, cma._draw(moment).tolist(), near)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)  # the bank is kept in float32
        for leaf in pair:
            mine, one = (torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in (found, wanted))
            torch.testing.assert_close(mine, one, rtol=1e-5, atol=1e-8)
        for rows, fresh in zip(banks, pair, strict=True):
            write(rows, samples, fresh)
    assert all(len(some) == POSITIVES for some in near.values())


def filled(samples: list[int], rows: Tensor, total: int = 40) -> Bank:
    """A bank in which every rank wrote its share of some rows [n, 2, D]."""
    bank = Bank(BankSettings(), total, (2, DIM))
    share = slice(rank() * len(samples) // world_size(), (rank() + 1) * len(samples) // world_size())
    bank.write(bank.visit(torch.tensor(samples)[share]), rows[share])
    return bank


IDS = [3, 38, 0, 17, 21, 5, 33, 12, 9, 30, 2, 26]
ROWS = torch.randn(len(IDS), 2, DIM, generator=torch.Generator().manual_seed(0))


def by_definition(positives: int, rows: Tensor = ROWS) -> tuple[dict[int, list[int]], float]:
    unit = torch.nn.functional.normalize(rows.double(), dim=2)
    seen, heard = ({i: unit[n, part] for n, i in enumerate(IDS)} for part in (0, 1))
    near = nearest((seen, heard), positives)
    least = [min(float(seen[i] @ seen[j]), float(heard[i] @ heard[j])) for i, some in near.items() for j in some]
    return near, sum(least) / len(least)


def as_found(positives: int) -> tuple[dict[int, list[int]], float, Tensor]:
    ids, mean = agreed(filled(IDS, ROWS), positives)
    return {i: [j for j in row if j >= 0] for i, row in enumerate(ids.tolist()) if row[0] >= 0}, float(mean), ids


@pytest.mark.parametrize(("compared", "piece"), [(8192, 1 << 25), (7, 21)])
@pytest.mark.parametrize("positives", [1, 4, 20])
def test_positives_are_nearest_in_both_whatever_the_pieces(
    positives: int, compared: int, piece: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(consensus, "COMPARED", compared)
    monkeypatch.setattr(consensus, "PIECE", piece)
    near, mean, ids = as_found(positives)
    wanted, least = by_definition(positives)
    assert near == wanted  # also where there are fewer others than are asked for
    assert mean == pytest.approx(least, abs=1e-6)
    assert (ids >= 0).sum() == len(IDS) * min(positives, len(IDS) - 1)


def test_a_copy_of_a_sample_is_its_positive_and_the_sample_itself_is_not() -> None:
    rows = ROWS.clone()
    rows[5] = rows[2]  # ids 5 and 0
    ids, _ = agreed(filled(IDS, rows), 3)
    assert (int(ids[0, 0]), int(ids[5, 0])) == (5, 0)
    assert not any(i in row for i, row in enumerate(ids.tolist()))


def test_an_empty_bank_has_none() -> None:
    ids, mean = agreed(Bank(BankSettings(), 40, (2, DIM)), 3)
    assert (ids == -1).all()
    assert mean == 0


@pytest.mark.slow
def test_ranks_find_what_one_finds() -> None:
    wanted = as_found(4)
    for near, mean, ids in run_ranks(4, as_found, 4):
        assert near == wanted[0]
        assert torch.equal(ids, wanted[2])
        assert mean == pytest.approx(wanted[1])


def test_the_doctor_counts_bank_and_positives_and_misses_refreshes() -> None:
    made = config(batch=64, head={"dim": 128}, **OBJECTIVE | {"positives": 32})
    found = examine(made, supposed(made, 10**9), 32)
    assert found["memory"]["kept_of_samples"] == pytest.approx(1024 / 32 + 128 * 2 / 32, rel=1e-4)
    assert found["host"]["kept_of_samples"] == pytest.approx(128, rel=1e-4)  # each rank has all
    late = config(batch=64, **OBJECTIVE | {"refresh_images": 10**6})
    told = examine(late, supposed(late, 100), 1)["problems"]
    assert any("no positives are searched for" in problem for problem in told)


def test_more_negatives_within_than_there_are_is_refused() -> None:
    with pytest.raises(UserError, match=r"objective\.within_negatives 20 is more than objective\.negatives 9"):
        objective(within_negatives=20)


def test_positives_of_another_set_are_refused() -> None:
    one, other = objective(), objective(positives=3)
    with pytest.raises(UserError, match=r"the positives of CMA is \[12, 3\], this run's \[12, 2\]"):
        one.load_state_dict(other.state_dict())


def training(data: Path) -> Config:
    made = config(crops=1, batch=8, **OBJECTIVE)
    train = made.train.model_copy(update={"images": 48, "checkpoint_every": 1, "keep": 100})
    return made.model_copy(update={"data": made.data.model_copy(update={"path": str(data)}), "train": train})


def killed(data: str, run: str) -> None:
    """Train until the second refresh has compared one piece, and end there as a power failure would."""
    join()
    consensus.COMPARED = 12
    searches, compared, ids, at = [0], [0], Bank.ids, Bank.at

    def begun(bank: Bank) -> Tensor:
        searches[0] += 1
        return ids(bank)

    def read(bank: Bank, samples: Any) -> Tensor:
        compared[0] += searches[0] == 2
        if compared[0] == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return at(bank, samples)

    Bank.ids, Bank.at = begun, read  # type: ignore[method-assign]
    start(training(Path(data)), Path(run), say=quiet)


@pytest.mark.slow
def test_killed_in_the_midst_of_a_refresh(tmp_path: Path) -> None:
    """Resumed, it ends bit for bit as if nothing had been."""
    make_pairs(tmp_path / "pairs", 34)
    assert start(training(tmp_path / "pairs"), tmp_path / "straight", say=quiet)
    process = processes.Process(target=killed, args=(str(tmp_path / "pairs"), str(tmp_path / "killed")))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert max(Checkpoints(store_of(tmp_path / "killed")).steps()) in (3, 4)  # what was being saved may be lost
    assert start(training(tmp_path / "pairs"), tmp_path / "killed", say=quiet)
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


@pytest.mark.slow
@pytest.mark.learns
@pytest.mark.timeout(1200)
def test_pairs_of_colours_and_tones_are_found_and_shuffled_sounds_are_not(tmp_path: Path) -> None:
    """AVID for the first half, then with positives. Chance is 1 / 36."""
    chosen = {"name": "cma", "negatives": 216, "positives": 5, "refresh_images": 1920}
    learnt, chance = found_of_new_ones(tmp_path, chosen, images=3840)
    assert learnt > 0.9
    assert chance < 0.15
