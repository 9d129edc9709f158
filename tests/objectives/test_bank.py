"""The memory bank against a plain dictionary, on any number of ranks; and the ring."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from seer_pipe.distributed.collectives import rank, world_size
from seer_pipe.errors import UserError
from seer_pipe.objectives import bank_settings
from seer_pipe.objectives.bank import Bank
from seer_pipe.objectives.bank_settings import BankSettings, layout
from seer_pipe.objectives.base import Reversible
from seer_pipe.objectives.ring import Ring
from tests.distributed import run_ranks, whole

D, EACH = 5, 12
NO, YES = torch.tensor(False), torch.tensor(True)
#: Ids of some steps of 12 images, in a set of so many.
Steps = list[list[int]]


def drawn(step: int) -> Tensor:
    return torch.randn(EACH, D, generator=torch.Generator().manual_seed(step), dtype=torch.float64)


def settings(keep: float = 0.25, dtype: Any = "float32") -> BankSettings:
    return BankSettings(keep=keep, dtype=dtype)


def as_dictionary(steps: Steps, keep: float) -> tuple[list[Tensor], dict[int, Tensor]]:
    """What each step reads [12, D], and the rows at the end. The third step is one that is taken back."""
    rows: dict[int, Tensor] = {}
    read = []
    for step, ids in enumerate(steps):
        read.append(torch.stack([rows.get(i, torch.zeros(D, dtype=torch.float64)) for i in ids]))
        if step == 2:
            continue
        before = dict(rows)
        for i, new in reversed(list(zip(ids, drawn(step), strict=True))):  # so that the first of equal ones counts
            new = new / new.norm()
            moved = keep * before[i] + (1 - keep) * new if i in before else new
            rows[i] = moved / moved.norm()
    return read, rows


def by_bank(samples: int, steps: Steps, keep: float, dtype: str) -> tuple[Tensor, Tensor, Tensor]:
    """What all steps read on this rank, all rows at the end by id, and the logical tensor."""
    bank = Bank(settings(keep, dtype), samples, (D,))
    read = []
    for step, ids in enumerate(steps):
        share = slice(rank() * EACH // world_size(), (rank() + 1) * EACH // world_size())
        visit = bank.visit(torch.tensor(ids)[share])
        read.append(bank.read(visit).clone())
        bank.write(visit, drawn(step)[share])
        bank.take_back(YES if step == 2 else NO)
        bank.take_back(YES)  # of a step that wrote nothing
    return torch.stack(read), bank.at(np.arange(samples)), whole(bank.logical)


ids = st.integers(1, 40).flatmap(
    lambda samples: st.tuples(
        st.just(samples), st.lists(st.lists(st.integers(0, samples - 1), min_size=EACH, max_size=EACH), max_size=5)
    )
)


@example((1, [[0] * EACH, [0] * EACH]), 1.0, 1, "float32")  # a row that never moves is still written
@given(ids, st.floats(0, 1), st.sampled_from([1, 7, 4096]), st.sampled_from(["float16", "float32"]))
def test_is_a_dictionary(drawing: tuple[int, Steps], keep: float, shards: int, dtype: str) -> None:
    samples, steps = drawing
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bank_settings, "SHARDS", shards)
        found, end, _ = by_bank(samples, steps, keep, dtype) if steps else (torch.zeros(0), None, None)
    read, rows = as_dictionary(steps, keep)
    tolerance = 1e-5 if dtype == "float32" else 5e-3
    if end is None:
        return
    torch.testing.assert_close(found.double(), torch.stack(read), rtol=0, atol=tolerance)
    for i, row in enumerate(end.double()):
        torch.testing.assert_close(row, rows.get(i, torch.zeros(D).double()), rtol=0, atol=tolerance)


SAMPLES = 29
SHARDS = 5  # fewer than 8 ranks would be, not a multiple of 2, 3 or 4
STEPS = [np.random.default_rng(step).integers(0, SAMPLES, EACH).tolist() for step in range(5)]


def over_ranks() -> tuple[Any, list[Tensor], Any]:
    bank_settings.SHARDS = SHARDS
    found = [by_bank(SAMPLES, STEPS, 0.25, dtype) for dtype in ("float16", "float32")]
    with pytest.raises(UserError, match=r"1,000,000,000,000 rows of 5 numbers in float16 takes .* GB on each of"):
        Bank(settings(dtype="float16"), 10**12, (D,))
    pairs = Bank(settings(), SAMPLES, (2, D))
    visit = pairs.visit(torch.arange(EACH).chunk(world_size())[rank()])
    pairs.write(visit, torch.stack([drawn(0), drawn(1)], dim=1).chunk(world_size())[rank()])
    ring = Ring(torch.zeros(20, D, dtype=torch.float64))
    for step in range(3):
        ring.push(drawn(step).chunk(world_size())[rank()])
        ring.take_back(YES if step == 1 else NO)
    return found, [ring.rows, ring.next], whole(pairs.logical)


@pytest.mark.parametrize("world", [4, *(pytest.param(world, marks=pytest.mark.slow) for world in (2, 3))])
def test_ranks_are_one_process(world: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit, where ranks divide the shards and where they do not, and some have fewer than others or none."""
    monkeypatch.setattr(bank_settings, "SHARDS", SHARDS)
    alone, ring, pairs = over_ranks()
    parts = run_ranks(world, over_ranks)
    for (read, rows, logical), *others in zip(alone, *(part[0] for part in parts), strict=True):
        assert torch.equal(torch.cat([other[0] for other in others], dim=1), read)
        assert all(torch.equal(other[1], rows) and torch.equal(other[2], logical) for other in others)
    read, rows = as_dictionary(STEPS, 0.25)
    torch.testing.assert_close(alone[1][0].double(), torch.stack(read), rtol=0, atol=1e-6)
    assert {i for i, row in enumerate(alone[1][1]) if row.any()} == rows.keys()  # others were never written
    assert all(torch.equal(mine, one) for part in parts for mine, one in zip(part[1], ring, strict=True))
    assert all(torch.equal(part[2], pairs) for part in parts)
    assert torch.equal(ring[0][:EACH], drawn(0)[:EACH].index_copy(0, torch.arange(4), drawn(2)[8:]))


@given(st.integers(1, 10**10))
def test_every_sample_has_a_place_of_its_own(samples: int) -> None:
    shards, rows = layout(samples)
    assert samples <= shards * rows < samples + shards
    for i in {0, samples // 3, samples - 1}:
        assert i // shards < rows


def test_memory_of_a_billion() -> None:
    half = settings(dtype="float16")
    assert half.bytes(10**9, 128, 64) * 64 == pytest.approx(256e9, rel=1e-4)
    assert half.bytes(10**9, 128, 60) / (256e9 / 60) < 1 + 60 / 4096
    assert settings().bytes(10**9, 128, 1) == pytest.approx(512e9, rel=1e-4)


def test_rings_and_banks_take_themselves_back() -> None:
    assert isinstance(Ring(torch.zeros(3, D)), Reversible)
    assert isinstance(Bank(settings(), 3, (D,)), Reversible)


def test_rows_of_another_shape_are_refused() -> None:
    with pytest.raises(UserError, match=r"the bank of NPID is \[3, 1, 4\], this run's \[3, 1, 5\]"):
        Bank(settings(), 3, (D,)).load(torch.zeros(3, 1, 4), "NPID")
    with pytest.raises(UserError, match=r"the ring is \[4, 5\], this run's \[3, 5\]: resume with the memory"):
        Ring(torch.zeros(3, D)).load(torch.zeros(4, D), torch.tensor(0), "the ring", "memory")
