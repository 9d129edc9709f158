"""Nearest neighbours against a plain reading of the formula."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from seer_pipe.evaluate.knn import knn_accuracy, neighbours
from seer_pipe.evaluate.retrieval import retrieval_accuracy


def slow_knn(queries: np.ndarray, bank: np.ndarray, labels: np.ndarray, k: int, temperature: float) -> list[int]:
    votes = []
    for query in queries.astype(np.float64):
        similar = bank @ query / np.linalg.norm(bank, axis=1) / np.linalg.norm(query)
        nearest = np.argsort(-similar)[:k]
        total = np.zeros(labels.max() + 1)
        for row in nearest:
            total[labels[row]] += np.exp((similar[row] - 1) / temperature)
        votes.append(int(total.argmax()))
    return votes


@settings(max_examples=30)
@given(st.integers(0, 1000), st.integers(1, 12), st.floats(0.05, 1))
def test_against_the_formula(seed: int, k: int, temperature: float) -> None:
    rng = np.random.default_rng(seed)
    bank, queries = rng.normal(size=(30, 8)), rng.normal(size=(11, 8))
    labels, asked = rng.integers(0, 4, 30), rng.integers(0, 4, 11)
    expected = float(np.mean(np.array(slow_knn(queries, bank, labels, k, temperature)) == asked))
    tensors = [torch.tensor(array) for array in (queries, asked, bank, labels)]
    got = knn_accuracy(*tensors, k=k, temperature=temperature)
    assert abs(got - expected) < 1e-6


def test_blocks_change_nothing_and_none_finds_itself() -> None:
    rows = torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    whole, blocks = neighbours(rows, rows, 5), neighbours(rows, rows, 5, rows=7)
    assert torch.equal(whole[1], blocks[1])
    assert torch.equal(whole[1][:, 0], torch.arange(50))
    _, others = neighbours(rows, rows, 5, leave_one_out=True, rows=7)
    assert not (others == torch.arange(50)[:, None]).any()


def test_clusters_are_found_and_noise_is_not() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.arange(4).repeat(50)
    clusters = torch.eye(4)[labels] + 0.1 * torch.randn(200, 4, generator=generator)
    noise = torch.randn(200, 4, generator=generator)
    assert knn_accuracy(clusters, labels, clusters, labels, leave_one_out=True) == 1.0
    assert knn_accuracy(noise, labels, noise, labels, leave_one_out=True) < 0.4


def test_retrieval() -> None:
    rows = torch.randn(40, 8, generator=torch.Generator().manual_seed(2))
    assert retrieval_accuracy(rows, 3 * rows + 0.01) == 1.0
    assert retrieval_accuracy(rows, rows.flip(0)) == 0.0
