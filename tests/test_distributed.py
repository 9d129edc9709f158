"""The helper that runs ranks: order of results, and a failure that says which rank and why."""

import pytest
import torch
import torch.distributed as dist

from tests.distributed import run_ranks


def total_of(value: int) -> tuple[int, float]:
    total = torch.tensor(float(value + dist.get_rank()))
    dist.all_reduce(total)
    return dist.get_rank(), total.item()


def fail_on_one() -> None:
    if dist.get_rank() == 1:
        raise KeyError("broken on purpose")
    dist.barrier()


def test_results_come_in_rank_order() -> None:
    assert run_ranks(3, total_of, 10) == [(0, 33.0), (1, 33.0), (2, 33.0)]


def test_a_failing_rank_raises_its_traceback() -> None:
    with pytest.raises(RuntimeError, match=r"rank 1 of 2 failed:(?s:.)*broken on purpose"):
        run_ranks(2, fail_on_one)
