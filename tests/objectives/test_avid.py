"""AVID against its equations in float64, sample by sample; its two banks; what a short training learns."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from seer_pipe.config import Config
from seer_pipe.evaluate.pairs import evaluate_pairs
from seer_pipe.objectives.avid.objective import Avid
from seer_pipe.objectives.bank import Bank
from seer_pipe.objectives.bank_settings import BankSettings
from seer_pipe.objectives.base import Moment
from seer_pipe.objectives.cma.consensus import agreed
from seer_pipe.objectives.instance_settings import mean_exponential
from seer_pipe.objectives.pairs import Pair
from seer_pipe.objectives.settings import Setup
from seer_pipe.run import start
from seer_pipe.train.build import outline
from seer_pipe.train.doctor import examine, supposed
from tests.objectives.runs import quiet
from tests.objectives.tones import KINDS, gate, gate_set
from tests.objectives.union import joined
from tests.train.helpers import small, weights

EACH, DIM, SAMPLES, T = 4, 5, 12, 0.2
STEPS = [[1, 5, 7, 2], [3, 7, 1, 7], [0, 1, 2, 11]]
Rows = dict[int, Tensor]


def config(crops: int = 1, batch: int = EACH, **objective: Any) -> Config:
    chosen = {"name": "avid", "sound_model": "tiny", "head": {"hidden": [], "dim": DIM}, "negatives": 9}
    return small(
        "unused",
        views={
            "crops": [{"count": crops, "size": 16, "scale": [0.3, 1]}],
            "augment": {"blur_p": 0.0},
            "sound": {"spectrum": "log_mel", "bands": 16, "seconds": 0.2},
        },
        model={"name": "tiny"},
        objective={**chosen, "temperature": T, **objective},
        train={"batch": batch, "images": 4 * batch},
    )


@pytest.fixture(autouse=True, scope="module")
def _listed() -> Iterator[None]:
    with joined():
        yield


def objective(crops: int = 1, **changes: Any) -> Avid:
    made = config(crops, **changes)
    found = made.objective.objective(outline(made), Setup(made.views, 3, SAMPLES, torch.device("cpu"), EACH))
    assert isinstance(found, Avid)
    return found


def outputs(crops: int, step: int) -> Pair:
    generator = torch.Generator().manual_seed(step)
    return Pair(*(torch.randn(rows * EACH, DIM, generator=generator, dtype=torch.float64).requires_grad_()
                  for rows in (crops, 1)))  # fmt: skip


def nce(v: Tensor, own: Tensor, others: list[Tensor]) -> Tensor:
    """-log P+ - sum of log (1 - P-), with P = e^s / (e^s + K Z) and Z the mean of e^s over random rows."""
    noise = max(1, len(others)) * mean_exponential(DIM, T)
    p = [(v @ row / T).exp() / ((v @ row / T).exp() + noise) for row in (own, *others)]
    return -p[0].log() - sum(((1 - other).log() for other in p[1:]), torch.zeros(()).double())


def infonce(v: Tensor, own: Tensor, others: list[Tensor]) -> Tensor:
    e = [(v @ row / T).exp() for row in (own, *others)]
    return -(e[0] / torch.stack(e).sum()).log()


def written_out(loss: str, pair: Pair, samples: list[int], banks: tuple[Rows, Rows], drawn: list[int]) -> Tensor:
    """The loss of one step; ``banks`` as they are before it."""
    one = {"nce": nce, "infonce": infonce}[loss]
    z, a = (rows / rows.norm(dim=1, keepdim=True) for rows in pair)
    seen, heard = banks
    terms = []
    for n, i in enumerate(samples):
        if i in seen:
            known = [j for j in drawn if j in seen and j != i]  # of both ways
            to_sounds = [one(v, heard[i], [heard[j] for j in known]) for v in z[n::EACH]]
            to_picture = one(a[n], seen[i], [seen[j] for j in known])
            terms.append(0.5 * torch.stack(to_sounds).mean() + 0.5 * to_picture)
    return torch.stack(terms).mean() if terms else 0 * z.sum() + 0 * a.sum()


def write(rows: Rows, samples: list[int], fresh: Tensor, keep: float = 0.5) -> None:
    before = dict(rows)
    for n, i in reversed(list(enumerate(samples))):  # of equal ones the first counts
        new = fresh[n].detach() / fresh[n].detach().norm()
        moved = keep * before[i] + (1 - keep) * new if i in before else new
        rows[i] = moved / moved.norm()


@pytest.mark.parametrize("crops", [1, 3])
@pytest.mark.parametrize("loss", ["nce", "infonce"])
def test_is_the_papers_loss_over_steps(loss: str, crops: int) -> None:
    avid = objective(crops, loss=loss)
    banks: tuple[Rows, Rows] = {}, {}
    for step, samples in enumerate(STEPS):
        pair, moment = outputs(crops, step), Moment(EACH * step, 1000, torch.tensor(samples))
        found, metrics = avid.loss(pair, moment, log=True)
        wanted = written_out(loss, pair, samples, banks, avid._draw(moment).tolist())
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=1e-9)  # the bank is kept in float32
        for leaf in pair:
            mine, one = (torch.autograd.grad(value, leaf, retain_graph=True)[0] for value in (found, wanted))
            torch.testing.assert_close(mine, one, rtol=1e-5, atol=1e-8)
        assert metrics["remembered"].item() == pytest.approx(sum(i in banks[0] for i in samples) / EACH)
        for rows, fresh in zip(banks, pair, strict=True):
            write(rows, samples, fresh)


def test_constants_are_those_of_the_original() -> None:
    made = objective(negatives=1024).settings
    assert (type(made)(name="avid").negatives, type(made)(name="avid").temperature) == (1024, 0.07)
    assert (type(made)(name="avid").loss, type(made)(name="avid").bank.keep) == ("nce", 0.5)


def test_the_doctor_counts_two_rows_of_each_sample() -> None:
    made = config(batch=64, head={"dim": 128})
    assert examine(made, supposed(made, 10**9), 32)["memory"]["kept_of_samples"] == pytest.approx(1024 / 32, rel=1e-4)


def test_what_does_not_learn_is_seen() -> None:
    avid, alike = objective(), Pair(torch.ones(EACH, DIM), torch.ones(EACH, DIM))
    for step in range(3):
        _, metrics = avid.loss(alike, Moment(step * EACH, 1000, torch.arange(EACH)), log=True)
    values = {name: value.item() for name, value in metrics.items()}
    told = [verdict for sign in avid.settings.signs() if (verdict := sign.judge(values))]
    assert not any(ok for ok, _ in told)
    assert len(told) == 2


@pytest.mark.slow
@pytest.mark.learns
@pytest.mark.timeout(1200)
def test_pairs_of_colours_and_tones_are_found_and_shuffled_sounds_are_not(tmp_path: Path) -> None:
    """With the published constants. Of one new sample of each kind; chance is 1 / 36. What picture and sound agree on
    in the bank is of one kind, for which CMA takes it."""
    chosen = {"name": "avid", "negatives": 216, "head": {"hidden": [128], "dim": 128, "batch_norm": False}}
    learnt, chance = found_of_new_ones(tmp_path, chosen, images=5120)
    assert learnt > 0.7
    assert chance < 0.15
    bank = Bank(BankSettings(), 6 * KINDS, (2, 128))
    bank.load(weights(tmp_path / "run")["objective/bank"], "AVID")
    ids, _ = agreed(bank, 5)
    kinds = torch.arange(6 * KINDS)[:, None] % KINDS
    assert (ids % KINDS == kinds).float().mean() > 0.9  # there are five others of a kind


def found_of_new_ones(folder: Path, objective: dict[str, Any], images: int) -> tuple[float, float]:
    """How often the partner of a sample of each kind is the nearest after a training on six others of each, the less of
    both ways; and the more of both ways where sounds are shuffled."""
    assert start(gate(gate_set(folder / "train", 6, seed=0), objective, images=images), folder / "run", say=quiet)
    test, shuffled = gate_set(folder / "test", 1, seed=1), gate_set(folder / "shuffled", 1, seed=2, shuffled=True)
    learnt, chance = (evaluate_pairs(folder / "run", str(data)) for data in (test, shuffled))
    assert learnt is not None
    assert chance is not None
    return min(learnt["sound_at_1"], learnt["picture_at_1"]), max(chance["sound_at_1"], chance["picture_at_1"])
