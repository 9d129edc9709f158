"""Sinkhorn against a literal float64 reference, its properties, and itself on several ranks."""

import math

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seer_pipe.objectives.swav.sinkhorn import sinkhorn
from tests.distributed import run_ranks

EPS = [0.05, 0.03, 0.02, 0.005]  # both forms, and below the range of float32


def cosines(samples: int, prototypes: int, seed: int = 0, assignment: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    z = F.normalize(torch.randn(assignment, samples, 16, generator=generator), dim=2)
    return z @ F.normalize(torch.randn(prototypes, 16, generator=generator), dim=1).T


def reference(scores: Tensor, eps: float, iterations: int) -> Tensor:
    """SwAV's algorithm 1 step by step, for one assignment crop [N, K], in float64."""
    q = torch.exp(scores.double() / eps).T
    prototypes, samples = q.shape
    q /= q.sum()
    for _ in range(iterations):
        q /= q.sum(dim=1, keepdim=True)
        q /= prototypes
        q /= q.sum(dim=0, keepdim=True)
        q /= samples
    return (q * samples).T


@pytest.mark.parametrize("iterations", [1, 3, 10])
@pytest.mark.parametrize("eps", EPS)
def test_equals_the_float64_reference(eps: float, iterations: int) -> None:
    scores = cosines(64, 40)
    codes = sinkhorn(scores, eps, iterations)
    assert codes.dtype == torch.float32
    for crop, code in zip(scores, codes, strict=True):
        torch.testing.assert_close(code.double(), reference(crop, eps, iterations), rtol=1e-4, atol=2e-6)


@settings(max_examples=50)
@given(
    samples=st.integers(1, 40),
    prototypes=st.integers(2, 40),
    eps=st.sampled_from(EPS),
    iterations=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_every_code_is_a_distribution(samples: int, prototypes: int, eps: float, iterations: int, seed: int) -> None:
    codes = sinkhorn(cosines(samples, prototypes, seed), eps, iterations)
    assert codes.shape == (2, samples, prototypes)
    assert codes.min() >= 0
    torch.testing.assert_close(codes.sum(dim=2), torch.ones(2, samples))


@pytest.mark.parametrize("eps", EPS)
def test_prototypes_are_used_equally_in_the_limit(eps: float) -> None:
    codes = sinkhorn(cosines(64, 16), eps, 2000 if eps < 0.03 else 200)
    torch.testing.assert_close(codes.sum(dim=1), torch.full((2, 16), 64 / 16), rtol=2e-2, atol=0)


def test_the_order_of_samples_and_of_prototypes_does_not_matter() -> None:
    torch.manual_seed(0)
    scores = cosines(24, 10)
    rows, columns = torch.randperm(24), torch.randperm(10)
    shuffled = sinkhorn(scores[:, rows][:, :, columns], 0.05, 3)
    torch.testing.assert_close(shuffled, sinkhorn(scores, 0.05, 3)[:, rows][:, :, columns], rtol=0, atol=1e-6)


def test_equal_scores_give_uniform_codes() -> None:
    torch.testing.assert_close(sinkhorn(torch.ones(1, 5, 7), 0.05, 3), torch.full((1, 5, 7), 1 / 7))


@pytest.mark.parametrize("eps", [0.05, 0.005])
def test_autocast_and_half_precision_do_not_reach_it(eps: float) -> None:
    scores = cosines(16, 8)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert torch.equal(sinkhorn(scores, eps, 3), sinkhorn(scores, eps, 3))
        cast = sinkhorn(scores.bfloat16(), eps, 3)
    torch.testing.assert_close(cast, sinkhorn(scores.bfloat16().float(), eps, 3), rtol=0, atol=0)


def test_a_prototype_out_of_reach_stays_unused() -> None:
    scores = cosines(16, 8)
    scores[:, :, 3] = -100.0  # exp underflows to zero for every sample
    codes = sinkhorn(scores, 0.05, 3)
    assert codes[:, :, 3].eq(0).all()
    torch.testing.assert_close(codes.sum(dim=2), torch.ones(2, 16))


def share(scores: Tensor, eps: float, cuts: list[int]) -> Tensor:
    return sinkhorn(scores.split(cuts, dim=1)[dist.get_rank()], eps, 3)


@pytest.mark.parametrize("eps", [0.05, 0.02])
@pytest.mark.parametrize("cuts", [[48], [20, 28], [12, 12, 5, 19]])
def test_shards_equal_the_whole(cuts: list[int], eps: float) -> None:
    scores = cosines(48, 30)
    codes = torch.cat(run_ranks(len(cuts), share, scores, eps, cuts), dim=1)
    torch.testing.assert_close(codes, sinkhorn(scores, eps, 3), rtol=0, atol=1e-6)


def test_a_near_collapse_shows_in_the_entropy_of_codes() -> None:
    torch.manual_seed(0)
    spread = cosines(256, 64)
    common = F.normalize(torch.ones(16), dim=0)
    collapsed = F.normalize(common + 0.02 * torch.randn(1, 256, 16), dim=2) @ F.normalize(torch.randn(64, 16), dim=1).T
    entropies = [torch.special.entr(sinkhorn(s, 0.05, 3)).sum(2).mean() for s in (spread, collapsed)]
    assert entropies[0] < 0.8 * math.log(64)
    assert entropies[1] > 0.9 * math.log(64)
