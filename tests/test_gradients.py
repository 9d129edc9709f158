"""Losses over gathered rows and over sums: the gradients of several ranks, averaged, are those of one process."""

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from seer_pipe.distributed.gradients import gather_crops, gather_rows, mean_and_variance, second_moment, sum_ranks
from tests.distributed import run_ranks

IMAGES, CROPS, WIDTH = 8, 3, 5


def rows_of(world: int, rank: int) -> Tensor:
    """This rank's rows in crop-major order of a global batch that depends on nothing."""
    whole = torch.randn(CROPS, IMAGES, WIDTH, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return whole.chunk(world, dim=1)[rank].flatten(0, 1).requires_grad_()


def contrast(rows: Tensor) -> Tensor:
    """Each row against all rows of all ranks; its own index among them is its target."""
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    images = IMAGES // world
    everyone = gather_crops(rows, images)
    own = torch.arange(CROPS)[:, None] * IMAGES + rank * images + torch.arange(images)
    return F.cross_entropy(rows @ everyone.T, own.flatten())


def redundancy(rows: Tensor) -> Tensor:
    """Equal on all ranks: of standardised columns' cross-correlation, as in redundancy reduction."""
    mean, variance = mean_and_variance(rows)
    z = (rows - mean) / (variance + 1e-3).sqrt()
    return (second_moment(z, z.flip(1)) - torch.eye(WIDTH, dtype=z.dtype)).square().sum()


def plain_sum(rows: Tensor) -> Tensor:
    return sum_ranks(rows.tanh().sum(0), same=True).square().sum() / 100


LOSSES = {"contrast": contrast, "redundancy": redundancy, "plain_sum": plain_sum}


def on_rank(name: str) -> tuple[float, Tensor]:
    """The mean loss over ranks, and this rank's part of the gradient as DDP averages it."""
    rows = rows_of(dist.get_world_size(), dist.get_rank())
    loss = LOSSES[name](rows)
    loss.backward()
    assert rows.grad is not None
    mean = loss.detach().clone()
    dist.all_reduce(mean)
    return float(mean / dist.get_world_size()), rows.grad / dist.get_world_size()


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("world", [1, 2, 4])
def test_the_gradient_is_that_of_one_process(world: int, name: str) -> None:
    rows = rows_of(1, 0)
    expected = LOSSES[name](rows)
    expected.backward()
    assert rows.grad is not None
    by_rank = rows.grad.unflatten(0, (CROPS, IMAGES)).chunk(world, dim=1)
    for (loss, gradient), own in zip(run_ranks(world, on_rank, name), by_rank, strict=True):
        assert loss == pytest.approx(float(expected), rel=1e-12)
        torch.testing.assert_close(gradient, own.flatten(0, 1), rtol=1e-9, atol=1e-12)


def test_one_process_needs_no_group() -> None:
    rows = rows_of(1, 0)
    assert gather_rows(rows) is rows
    mean, variance = mean_and_variance(rows)
    torch.testing.assert_close(mean, rows.mean(0))
    torch.testing.assert_close(variance, rows.var(0, unbiased=False))
