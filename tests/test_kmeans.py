"""Spherical k-means: against a plain one in float64, on any number of ranks, and what holds of any rows."""

import resource
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from seer_pipe.distributed import kmeans as module
from seer_pipe.distributed.kmeans import Clustering, kmeans, nearest
from tests.distributed import run_ranks


def blobs(clusters: int = 12, each: int = 40, width: int = 16, spread: float = 0.25) -> Tensor:
    """Rows of any length about ``clusters`` directions, which follow each other."""
    draws = torch.Generator().manual_seed(3)
    centres = torch.nn.functional.normalize(torch.randn(clusters, width, generator=draws))
    rows = centres.repeat(each, 1) + spread / width**0.5 * torch.randn(clusters * each, width, generator=draws)
    return rows * (0.1 + 10 * torch.rand(len(rows), 1, generator=draws))


def plain(rows: Tensor, start: Tensor, iterations: int) -> tuple[np.ndarray, np.ndarray, list[float]]:
    """Lloyd's iterations in float64, a cluster at a time; centroids, clusters and mean cosines."""
    x = rows.double().numpy()
    x /= np.linalg.norm(x, axis=1, keepdims=True)
    centroids, cosines = start.double().numpy(), []
    for iteration in range(iterations + 1):
        cosine = x @ centroids.T
        cluster = cosine.argmax(1)
        cosines.append(float(cosine.max(1).mean()))
        if iteration < iterations:
            centroids = np.stack([x[cluster == k].sum(0) for k in range(len(centroids))])
            centroids /= np.linalg.norm(centroids, axis=1, keepdims=True)
    return centroids, cluster, cosines


def test_is_lloyds_algorithm() -> None:
    rows = blobs()
    drawn = kmeans(rows, 12, seed=1, iterations=0).centroids
    found = kmeans(rows, 12, seed=1, iterations=4)
    centroids, cluster, cosines = plain(rows, drawn, 4)
    assert found.scores == pytest.approx(cosines[: len(found.scores)], abs=1e-6)
    assert cosines[-1] > cosines[0] + 0.05
    assert found.cluster.tolist() == cluster.tolist()
    torch.testing.assert_close(found.centroids.double(), torch.from_numpy(centroids), rtol=0, atol=1e-6)
    assert found.sizes.tolist() == np.bincount(cluster, minlength=12).tolist()


def test_starts_from_distinct_rows_by_seed_and_number() -> None:
    rows = blobs()
    unit = torch.nn.functional.normalize(rows)
    found = {(seed, number): kmeans(rows, 12, seed=seed, number=number, iterations=0) for seed in (0, 1)
             for number in (0, 1)}  # fmt: skip
    chosen = {key: tuple((one.centroids @ unit.T).argmax(1).tolist()) for key, one in found.items()}
    assert len(set(chosen.values())) == 4
    assert all(len(set(one)) == 12 for one in chosen.values())
    assert torch.equal(kmeans(rows, 12, seed=1, iterations=0).centroids, found[1, 0].centroids)


def test_a_warm_start_keeps_the_numbers_of_the_clusters() -> None:
    rows = blobs()
    first = kmeans(rows, 12, seed=0, iterations=20)
    again = kmeans(rows, 12, seed=5, number=7, start=first.centroids)
    assert torch.equal(first.cluster, again.cluster)
    assert len(again.scores) == 2  # nothing changed at the second, so it ended
    planted = kmeans(rows, 12, seed=0, start=rows[:12])
    assert torch.equal(planted.cluster, torch.arange(12).repeat(40))


def on_ranks(rows: Tensor, cuts: list[int], clusters: int) -> Clustering:
    return kmeans(rows.tensor_split(cuts)[dist.get_rank()], clusters, seed=2, iterations=6)


@pytest.mark.parametrize("cuts", [[], [100], [0, 333, 333]], ids=["1 rank", "2 ranks", "4 ranks, two of them empty"])
def test_any_number_of_ranks(cuts: list[int]) -> None:
    rows = blobs(spread=1)
    whole = kmeans(rows, 30, seed=2, iterations=6)
    parts = run_ranks(len(cuts) + 1, on_ranks, rows, cuts, 30)
    assert torch.equal(torch.cat([part.cluster for part in parts]), whole.cluster)
    for part in parts:
        assert torch.equal(part.centroids, parts[0].centroids)
        torch.testing.assert_close(part.centroids, whole.centroids, rtol=0, atol=1e-6)
        assert torch.equal(part.sizes, whole.sizes)
        assert part.scores == pytest.approx(whole.scores, abs=1e-6)


@given(seed=st.integers(0, 2**40), n=st.integers(1, 60), width=st.integers(2, 6), clusters=st.integers(1, 20),
       kinds=st.integers(1, 30), piece=st.integers(1, 400))  # fmt: skip
@settings(max_examples=60)
def test_properties(seed: int, n: int, width: int, clusters: int, kinds: int, piece: int) -> None:
    """Also where rows are repeated, fewer than clusters, or a piece at a time."""
    draws = torch.Generator().manual_seed(seed)
    rows = torch.randn(kinds, width, generator=draws)[torch.randint(kinds, (n,), generator=draws)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "PIECE", piece)
        found = kmeans(rows, clusters, seed=seed)
        cluster, cosine = nearest(rows, found.centroids)
    exact = torch.nn.functional.normalize(rows.double()) @ found.centroids.double().T
    own = exact.gather(1, found.cluster[:, None])[:, 0]
    assert torch.all(own >= exact.amax(1) - 1e-6)
    assert torch.equal(cluster, found.cluster)
    assert torch.allclose(cosine.double(), own, atol=1e-6)
    assert found.score == pytest.approx(float(own.mean()), abs=1e-6)
    assert all(later >= earlier - 1e-6 for earlier, later in zip(found.scores, found.scores[1:], strict=False))
    assert torch.equal(found.sizes, found.cluster.bincount(minlength=clusters))
    torch.testing.assert_close(found.centroids.norm(dim=1), torch.ones(clusters))


def test_fewer_rows_than_clusters() -> None:
    rows = torch.nn.functional.normalize(torch.randn(5, 8, generator=torch.Generator().manual_seed(0)))
    found = kmeans(rows, 9, seed=0)
    assert found.sizes.sort(descending=True).values.tolist() == [1] * 5 + [0] * 4
    assert found.score == pytest.approx(1)
    torch.testing.assert_close(found.centroids[found.cluster], rows)


def test_an_empty_cluster_splits_the_largest() -> None:
    assert module._splits([0, 8, 0, 3, 0, 1]) == [(0, 1), (2, 1), (4, 3)]
    assert module._splits([0, 1, 1]) == []
    rows = blobs(clusters=2, each=100)
    start = torch.cat([rows[:1], -rows[:1].repeat(9, 1)])  # all rows but the other blob's to the first at most
    found = kmeans(rows, 10, seed=0, start=start, iterations=30)
    assert found.sizes.min() > 0
    assert found.score > kmeans(rows, 2, seed=0).score


def test_float16_rows_are_clustered_in_float32() -> None:
    rows = torch.nn.functional.normalize(blobs()).half()
    with torch.autocast("cpu", torch.bfloat16):
        found = kmeans(rows, 12, seed=1)
    assert found.centroids.dtype == torch.float32
    assert torch.equal(found.cluster, kmeans(rows.float(), 12, seed=1).cluster)


def test_no_rows_and_rows_that_are_not_finite() -> None:
    with pytest.raises(ValueError, match="no rows"):
        kmeans(torch.zeros(0, 4), 3, seed=0)
    rows = blobs()
    rows[7, 2] = torch.nan
    with pytest.raises(ValueError, match="not finite"):
        kmeans(rows, 3, seed=0)
    assert nearest(torch.zeros(0, 4), torch.eye(4))[0].tolist() == []


def memory_of(n: int) -> float:
    """Bytes by which the peak of this process grew."""
    rows = torch.randn(n, 128, dtype=torch.float16, generator=torch.Generator().manual_seed(0))
    kmeans(rows[:100], 8, seed=0)  # what is loaded at first use
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = kmeans(rows, 16_000, seed=0, iterations=1)
    assert int(found.sizes.sum()) == n
    return 1024.0 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def test_memory_is_of_a_piece_and_the_centroids() -> None:
    """The cosines of all rows would be 0.6 GB."""
    assert run_ranks(1, memory_of, 10_000)[0] < 0.3e9


def test_euclidean_is_scikit_learns() -> None:
    """From the same start the same objective, centroids and clusters; also of rows far from the origin."""
    from sklearn.cluster import KMeans

    rows = blobs(spread=2) + 30
    found = kmeans(rows, 12, seed=0, start=rows[:12], iterations=50, spherical=False)
    theirs = KMeans(12, init=rows[:12].double().numpy(), n_init=1, max_iter=50, tol=0).fit(rows.double().numpy())
    assert -found.score * len(rows) == pytest.approx(theirs.inertia_, rel=1e-6)
    assert found.cluster.tolist() == theirs.labels_.tolist()
    assert found.centroids.numpy() == pytest.approx(theirs.cluster_centers_, abs=1e-4)
    assert all(later >= earlier - 1e-4 for earlier, later in zip(found.scores, found.scores[1:], strict=False))


def test_spherical_is_worth_what_scikit_learns_is() -> None:
    """Best of ten starts each, of unit rows: the mean directions of its clusters are no better by a percent."""
    from sklearn.cluster import KMeans

    unit = torch.nn.functional.normalize(blobs(clusters=20, spread=2))
    theirs = torch.from_numpy(KMeans(20, n_init=10, random_state=0).fit(unit.numpy()).cluster_centers_).float()
    best = nearest(unit, torch.nn.functional.normalize(theirs))[1].mean()
    ours = max(kmeans(unit, 20, seed=seed, iterations=50).score for seed in range(10))
    assert ours > best - 0.01 * (1 - best)


def test_euclidean_on_ranks_with_an_empty_cluster() -> None:
    rows = torch.cat([blobs(spread=1), torch.zeros(1, 16)])
    start = torch.cat([rows[:11], torch.full((1, 16), 1e3)])  # nothing is near the last
    whole = kmeans(rows, 12, seed=2, start=start, spherical=False)
    parts = run_ranks(2, euclidean_on_ranks, rows, start)
    assert torch.equal(torch.cat([part.cluster for part in parts]), whole.cluster)
    torch.testing.assert_close(parts[0].centroids, whole.centroids, rtol=0, atol=1e-5)
    assert whole.sizes.min() > 0
    exact = torch.cdist(rows.double(), whole.centroids.double()).square()
    assert whole.score == pytest.approx(-float(exact.amin(1).mean()), rel=1e-5)


def euclidean_on_ranks(rows: Tensor, start: Tensor) -> Clustering:
    return kmeans(rows.tensor_split(2)[dist.get_rank()], 12, seed=2, start=start, spherical=False)


def test_rows_may_be_a_map_of_a_file(tmp_path: Path) -> None:
    rows = blobs()
    (tmp_path / "rows").write_bytes(rows.numpy().tobytes())
    mapped = torch.from_file(str(tmp_path / "rows"), shared=True, size=rows.numel()).view(rows.shape)
    for spherical in (True, False):
        found = kmeans(mapped, 12, seed=1, spherical=spherical)
        assert torch.equal(found.cluster, kmeans(rows, 12, seed=1, spherical=spherical).cluster)
    assert (tmp_path / "rows").read_bytes() == rows.numpy().tobytes()
