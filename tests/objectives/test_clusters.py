"""DeepCluster and SeLa: the loss against float64, image by image; refreshes; what they log; a kill in a refresh."""

import math
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from seer_pipe.config import Config
from seer_pipe.errors import UserError
from seer_pipe.objectives.base import Moment
from seer_pipe.objectives.clusters import Clustered, compared
from seer_pipe.objectives.momentum import MomentumOutput
from seer_pipe.objectives.sela import objective as sela_module
from seer_pipe.objectives.sela.objective import Sela, evened
from seer_pipe.objectives.settings import Setup
from seer_pipe.objectives.swav.objective import SwavHead, SwavOutput
from seer_pipe.report.health import verdicts
from seer_pipe.run import start
from seer_pipe.train.build import build_network
from seer_pipe.train.checkpoint import Checkpoints
from seer_pipe.train.committed import store_of
from seer_pipe.train.telemetry import read_metrics
from tests.distributed import processes
from tests.objectives.runs import quiet
from tests.objectives.union import join, joined
from tests.train.helpers import assert_same_run, make_pictures, small

IMAGES, DIM, K, HEADS, SAMPLES, T = 6, 5, 4, 3, 20, 0.1
BOTH = pytest.mark.parametrize("name", ["deepcluster", "sela"])
KINDS = pytest.mark.parametrize("ring", [0, 8], ids=["bank", "ring"])


def config(name: str, ring: int = 0, pictures: Path | str = "unused", **train: Any) -> Config:
    return small(
        pictures,
        views={"crops": [{"count": 3, "size": 16, "scale": [0.3, 1]}], "augment": {"blur_p": 0.0}},
        model={"name": "tiny"},
        objective={"name": name, "head": {"hidden": [], "dim": DIM}, "prototypes": K, "heads": HEADS, "ring": ring,
                   "refresh_images": 16, "temperature": T},
        optimizer={"name": "sgd", "lr": 0.5},
        train={"batch": IMAGES, "images": 100 * IMAGES, **train},
    )  # fmt: skip


@pytest.fixture(autouse=True, scope="module")
def _listed() -> Iterator[None]:
    with joined():
        yield


def objective(name: str, ring: int = 0) -> Clustered:
    made = config(name, ring)
    network = build_network(made)
    found = made.objective.objective(network, Setup(made.views, 0, SAMPLES, torch.device("cpu"), IMAGES))
    assert isinstance(found, Clustered)
    found.before_step(at(0, []))
    return found


def at(step: int, samples: list[int]) -> Moment:
    return Moment(step * IMAGES, 10**6, torch.tensor(samples, dtype=torch.int64))


def embeddings(step: int) -> Tensor:
    generator = torch.Generator().manual_seed(step)
    return torch.randn(3 * IMAGES, DIM, generator=generator, dtype=torch.float64)


def outputs(made: Clustered, raw: Tensor) -> Any:
    """What the network would return for embeddings ``raw``: with a ring also those of the copies, crops 0 and 1."""
    online: Any = raw
    if isinstance(made, Sela):
        z = raw / raw.norm(dim=1, keepdim=True)
        online = SwavOutput(z, z @ made.head.prototypes.weight.detach().double().T)
    return MomentumOutput(online, copied(raw)) if made.settings.ring else online


def copied(raw: Tensor) -> Tensor:
    return (raw.detach() + embeddings(99))[: 2 * IMAGES]


def written_out(made: Clustered, raw: Tensor, samples: list[int], rows: dict[int, Tensor], ring: bool) -> Tensor:
    z = raw / raw.norm(dim=1, keepdim=True)
    terms = []
    for h in range(HEADS):
        a = h % 2
        centroids, offsets = made.centroids[h].double(), made.offsets[h].double()
        vectors = centroids
        if isinstance(made, Sela):
            vectors = made.head.prototypes.weight.detach().double()[h * K : (h + 1) * K]
        for n, i in enumerate(samples):
            if not ring and i not in rows:
                continue
            x = F.normalize(copied(raw)[a * IMAGES + n], dim=0) if ring else rows[i][a]
            label = int((centroids @ x + offsets).argmax())
            for v in [v for v in range(3) if not ring or v != a]:
                scores = vectors @ z[v * IMAGES + n] / T
                terms.append(scores.logsumexp(0) - scores[label])
    return torch.stack(terms).mean()


@BOTH
@KINDS
def test_is_the_mean_over_heads_crops_and_images(name: str, ring: int) -> None:
    made = objective(name, ring)
    rows: dict[int, Tensor] = {}
    for step, samples in enumerate([[0, 1, 2, 3, 4, 5], [6, 1, 8, 3, 4, 0], [2, 6, 19, 9, 0, 1]]):
        raw = embeddings(step).requires_grad_()
        loss, metrics = made.loss(outputs(made, raw), at(step, samples), log=True)
        if step == 0:  # there are no clusters
            assert loss == 0
            assert not torch.autograd.grad(loss, raw)[0].any()
        else:
            wanted = written_out(made, raw, samples, rows, bool(ring))
            torch.testing.assert_close(loss, wanted, rtol=1e-6, atol=1e-9)
            mine, one = (torch.autograd.grad(value, raw, retain_graph=True)[0] for value in (loss, wanted))
            torch.testing.assert_close(mine, one, rtol=1e-5, atol=1e-8)
            known = [1.0 for i in samples if ring or i in rows]
            assert metrics["labelled"].item() == pytest.approx(sum(known) / IMAGES)
        z = (raw / raw.norm(dim=1, keepdim=True)).detach().unflatten(0, (3, -1))
        rows |= {i: z[:2, n] for n, i in enumerate(samples)}
        made.refresh(step + 1, at(step + 1, []))
        assert made.centroids.norm(dim=2).allclose(torch.ones(()))


@BOTH
@KINDS
def test_clusters_are_of_the_memory_and_stay_what_they_were(name: str, ring: int) -> None:
    made = objective(name, ring)
    made.refresh(1, at(1, []))
    assert not made.centroids.any()  # nothing is remembered
    for step in range(3):
        made.loss(outputs(made, embeddings(step)), at(step, [(IMAGES * step + n) % SAMPLES for n in range(IMAGES)]))
    rows = made._rows_here()
    assert len(rows) == (ring or 18)
    made.refresh(1, at(3, []))
    first = [made._labels(rows[:, h % 2], h) for h in range(HEADS)]
    before = made.centroids.clone()
    for number in range(2, 6):
        made.refresh(number, at(3, []))
    again = [made._labels(rows[:, h % 2], h) for h in range(HEADS)]
    values = {key: value.item() for key, value in made.loss(
        outputs(made, embeddings(0)), at(3, list(range(IMAGES))), log=True)[1].items()}  # fmt: skip
    assert values["refresh_nmi"] == pytest.approx(1)  # of the same memory
    assert values["cluster_perplexity"] > 0.6
    assert values["clusters_empty"] == 0
    assert sum((one == other).sum().item() for one, other in zip(first, again, strict=True)) > 0.9 * HEADS * len(rows)
    assert (before * made.centroids).sum(2).min() > 0.8


def test_refreshes_are_alike_for_a_seed_and_number() -> None:
    def refreshed(number: int) -> Tensor:
        made = objective("deepcluster")
        made.loss(embeddings(0), at(0, list(range(IMAGES))))
        made.refresh(number, at(1, []))
        return made.centroids

    assert torch.equal(refreshed(1), refreshed(1))
    assert not torch.equal(refreshed(1), refreshed(2))


def test_what_is_compared_is_as_defined() -> None:
    generator = torch.Generator().manual_seed(0)
    before, after = (torch.randint(5, (200,), generator=generator) for _ in range(2))
    after = torch.where(torch.rand(200, generator=generator) < 0.6, before, after)
    perplexity, empty, largest, nmi = compared(before, after, 7).tolist()
    one, other = Counter(before.tolist()), Counter(after.tolist())
    pairs = Counter(zip(before.tolist(), after.tolist(), strict=True))
    shared = sum(n / 200 * math.log(200 * n / (one[a] * other[b])) for (a, b), n in pairs.items())
    own = [-sum(n / 200 * math.log(n / 200) for n in each.values()) for each in (one, other)]
    assert nmi == pytest.approx(2 * shared / sum(own))
    assert 0.2 < nmi < 0.8
    sizes = torch.bincount(after, minlength=7).double() / 200
    assert perplexity == pytest.approx((-(sizes * sizes.clamp_min(1e-30).log()).sum()).exp().item() / 7)
    assert empty == pytest.approx(2 / 7)
    assert largest == pytest.approx(sizes.max().item())
    assert compared(before * 0, before * 0, 7)[3] == 1


def test_offsets_are_sinkhorns() -> None:
    """Against the whole matrix in float64: rows to 1/N and columns to 1/K in turn, until both hold."""
    generator = torch.Generator().manual_seed(0)
    rows = F.normalize(torch.randn(300, 16, generator=generator) + 1.0)  # all lean to one side
    centroids, epsilon = F.normalize(torch.randn(6, 16, generator=generator)), 0.1
    q = (rows @ centroids.T).double().div(epsilon).exp()
    for _ in range(1000):
        q /= q.sum(0) * 6
        q /= q.sum(1, keepdim=True) * 300
    offsets = evened(rows, centroids, torch.zeros(6), epsilon, 300)
    soft = F.softmax((rows @ centroids.T + offsets) / epsilon, dim=1)
    torch.testing.assert_close(soft.double() / 300, q, rtol=1e-3, atol=1e-7)
    labels = (rows @ centroids.T + offsets).argmax(1)
    assert labels.tolist() == q.argmax(1).tolist()
    plain = torch.bincount((rows @ centroids.T).argmax(1), minlength=6)
    assert torch.bincount(labels, minlength=6).max() < 0.6 * plain.max()


def test_scores_in_pieces_are_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    rows, centroids = F.normalize(embeddings(0).float()), F.normalize(embeddings(1).float()[:K])
    whole = evened(rows, centroids, torch.zeros(K), 0.1, 10)
    monkeypatch.setattr("seer_pipe.objectives.clusters.PIECE", 5 * K)
    torch.testing.assert_close(evened(rows, centroids, torch.zeros(K), 0.1, 10), whole)


@BOTH
def test_collapse_is_seen(name: str) -> None:
    made = objective(name, 8)
    alike = torch.ones(3 * IMAGES, DIM, dtype=torch.float64) + 1e-6 * embeddings(0)
    for step in range(3):
        made.loss(outputs(made, alike), at(step, list(range(IMAGES))))
    made.refresh(1, at(3, []))
    made.health[:] = torch.tensor([0.25, 0.75, 1.0, 0.0])  # as of one cluster that takes all, another one each time
    values = {key: value.item() for key, value in made.loss(
        outputs(made, alike), at(3, list(range(IMAGES))), log=True)[1].items()}  # fmt: skip
    told = [text for sign in made.settings.signs() if (verdict := sign.judge(values)) and not verdict[0]
            for text in verdict[1:]]  # fmt: skip
    assert any("as if 25% of them were even, and the largest has 100%" in text for text in told)
    assert any("agree by 0.00 (NMI)" in text for text in told)
    assert any("the embeddings fill 1.0 directions" in text for text in told)


@BOTH
def test_how_even_the_labels_of_a_batch_are(name: str) -> None:
    """By hand, of different images, and of images that are all alike and have one label."""
    made = objective(name)
    for step in range(3):
        made.loss(outputs(made, embeddings(step)), at(step, list(range(IMAGES))))
    made.refresh(1, at(3, []))
    for alike in (False, True):
        raw = embeddings(7) if not alike else torch.ones_like(embeddings(7))
        made.loss(outputs(made, raw), at(4, list(range(IMAGES))))  # which the bank remembers
        rows = F.normalize(raw, dim=1).unflatten(0, (3, IMAGES))
        found = [(rows[h % 2] @ made.centroids[h].double().T + made.offsets[h]).argmax(1) for h in range(HEADS)]
        shares = torch.stack([torch.bincount(labels, minlength=K) / IMAGES for labels in found])
        wanted = torch.special.entr(shares).sum(1).exp().mean() / K
        _, metrics = made.loss(outputs(made, raw), at(5, list(range(IMAGES))), log=True)
        assert metrics["label_perplexity"].item() == pytest.approx(wanted.item(), rel=1e-6)
        assert (metrics["label_perplexity"].item() == pytest.approx(1 / K)) == alike


def test_settings_that_cannot_work_are_refused_or_told() -> None:
    with pytest.raises(UserError, match=r"objective.ring 3 is less than train.batch or objective.prototypes"):
        config("sela", 3)
    assert config("sela").objective.problems(config("sela"), 16) == [
        "objective.refresh_images: there are no clusters before the first refresh, so nothing is learnt"
    ]
    with pytest.raises(UserError, match=r"the centroids of the clusters is \[3, 9, 5\], this run's \[3, 4, 5\]"):
        objective("sela").load_state_dict({"centroids": torch.zeros(3, 9, 5)})


def training(name: str, pictures: Path | str) -> Config:
    return config(name, 20, pictures, batch=8, images=48, checkpoint_every=1, keep=100)


def killed(name: str, pictures: str, run: str, at_call: int) -> None:
    """Train until the ``at_call``-th head is clustered, and end there as a power failure would."""
    join()
    calls = [0]
    module = sela_module if name == "sela" else __import__(
        "seer_pipe.objectives.deepcluster.objective", fromlist=["kmeans"])  # fmt: skip
    function = "evened" if name == "sela" else "kmeans"
    honest = getattr(module, function)

    def call(*args: Any, **kwargs: Any) -> Any:
        calls[0] += 1
        if calls[0] == at_call:
            os.kill(os.getpid(), signal.SIGKILL)
        return honest(*args, **kwargs)

    setattr(module, function, call)
    start(training(name, pictures), Path(run), say=quiet)


@pytest.mark.slow
@BOTH
def test_killed_in_the_midst_of_a_refresh(name: str, tmp_path: Path) -> None:
    """In its second refresh, after the first head: resumed, it ends bit for bit as if nothing had been."""
    pictures = make_pictures(tmp_path / "pictures", [13, 0, 1, 20])
    assert start(training(name, pictures), tmp_path / "straight", say=quiet)
    process = processes.Process(target=killed, args=(name, str(pictures), str(tmp_path / "killed"), HEADS + 2))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    steps = Checkpoints(store_of(tmp_path / "killed")).steps()
    assert max(steps) in (3, 4)  # what was being saved may be lost
    assert start(training(name, pictures), tmp_path / "killed", say=quiet)
    assert_same_run(tmp_path / "straight", tmp_path / "killed")


def test_the_head_of_sela_has_the_prototypes_of_all_heads() -> None:
    made = objective("sela")
    assert isinstance(made, Sela)
    assert isinstance(made.head, SwavHead)
    assert made.head.prototypes.weight.shape == (HEADS * K, DIM)


@pytest.mark.slow
def test_a_ring_without_its_slow_copy_collapses_and_is_seen(tmp_path: Path) -> None:
    """Between two refreshes all images move to few clusters, which are easy to predict."""
    recipe = small(
        make_pictures(tmp_path / "pictures", [600]),
        views={"crops": [{"count": 2, "size": 32, "scale": [0.3, 1.0]}, {"count": 2, "size": 24, "scale": [0.1, 0.4]}],
               "augment": {"jitter": [0.4, 0.4, 0.4, 0.1], "blur_p": 0.0}},
        objective={"name": "deepcluster", "head": {"hidden": [128], "dim": 64}, "prototypes": 32, "heads": 1,
                   "ring": 1280, "refresh_images": 640, "momentum": {"start": 0.0, "end": 0.0, "batch": 64}},
        optimizer={"name": "adamw", "lr": 0.006, "warmup_images": 640, "weight_decay": 1e-6},
        train={"batch": 64, "images": 64 * 30, "log_every": 5, "checkpoint_every": 1000},
    )  # fmt: skip
    assert start(recipe, tmp_path / "run", say=quiet)
    rows = [row for row in read_metrics(tmp_path / "run") if row["step"] > 10]  # after the first refresh
    found = [text for row in rows for good, text in verdicts([row], [], {}, recipe.objective.signs()) if not good]
    assert any("images move to few clusters between two refreshes" in text for text in found)
    assert min(row["loss"] for row in rows) < math.log(32) / 2
