"""SwAV against the published algorithm written out in float64, its queue and freeze, and itself on several ranks."""

import math
from contextlib import nullcontext
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from seer_pipe.errors import UserError
from seer_pipe.objectives.base import Network
from seer_pipe.objectives.multicrop import predict_others
from seer_pipe.objectives.swav.objective import Swav, SwavHead, SwavOutput
from seer_pipe.optim.larc import Larc
from seer_pipe.train.health import Guard
from tests.distributed import run_ranks
from tests.host_sync import no_host_sync
from tests.objectives.moments import at
from tests.objectives.test_sinkhorn import reference as sinkhorn_reference

CROPS, BATCH, WIDTH, DIM, PROTOTYPES = 4, 12, 10, 6, 20


def build(**settings: Any) -> Swav:
    torch.manual_seed(1)
    head = SwavHead([WIDTH, 16, DIM], PROTOTYPES, batch_norm=False)
    return Swav(head, crops=CROPS, **settings)


def features(step: int, batch: int = BATCH) -> Tensor:
    """Features [CROPS, batch, WIDTH] of a step's global batch; crops of an image are alike."""
    generator = torch.Generator().manual_seed(100 + step)
    image = torch.randn(1, batch, WIDTH, generator=generator)
    return image + 0.3 * torch.randn(CROPS, batch, WIDTH, generator=generator)


class Reference:
    """SwAV as published, one crop after the other, in float64: queue first, batch last, weights given."""

    def __init__(self, queue_length: int) -> None:
        self.queue = torch.zeros(2, queue_length, DIM, dtype=torch.float64)

    def loss(self, z: Tensor, prototypes: Tensor, use_queue: bool, eps: float = 0.05) -> Tensor:
        scores = z @ prototypes.T
        loss = torch.zeros((), dtype=torch.float64)
        for a in (0, 1):
            with torch.no_grad():
                out = scores[a]
                if use_queue and not (self.queue[a, -1] == 0).all():
                    out = torch.cat([self.queue[a] @ prototypes.T, out])
                if use_queue:
                    self.queue[a, BATCH:] = self.queue[a, :-BATCH].clone()
                    self.queue[a, :BATCH] = z[a]
                q = sinkhorn_reference(out, eps, 3)[-BATCH:]
            subloss = torch.zeros((), dtype=torch.float64)
            for v in range(CROPS):
                if v != a:
                    subloss -= (q * F.log_softmax(scores[v] / 0.1, dim=1)).sum(dim=1).mean()
            loss += subloss / (CROPS - 1)
        return loss / 2


def test_loss_gradients_and_queue_equal_the_published_algorithm_over_steps() -> None:
    start = 2 * BATCH
    swav = build(queue_length=3 * BATCH, queue_start=start)
    published = Reference(3 * BATCH)
    for step in range(8):
        swav.before_step(at(step * BATCH))
        output = swav.head(features(step).flatten(0, 1))
        loss, _ = swav.loss(output, at(step * BATCH))

        z = output.embeddings.detach().double().unflatten(0, (CROPS, -1)).requires_grad_()
        prototypes = swav.head.prototypes.weight.detach().double().requires_grad_()
        expected = published.loss(z, prototypes, use_queue=step * BATCH >= start)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)

        by_z, by_c = torch.autograd.grad(expected, [z, prototypes])
        mine = torch.autograd.grad(loss, [output.embeddings, swav.head.prototypes.weight])
        torch.testing.assert_close(mine[0].double().view_as(by_z), by_z, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(mine[1].double(), by_c, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(swav.queue.double(), published.queue)

        with torch.no_grad():  # the next step sees other weights, as in training
            for parameter in swav.head.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))


def test_gradient_check_of_the_cross_entropy() -> None:
    scores = torch.randn(CROPS, 3, PROTOTYPES, dtype=torch.float64, requires_grad=True)
    codes = torch.softmax(torch.randn(2, 3, PROTOTYPES, dtype=torch.float64), dim=2)
    assert torch.autograd.gradcheck(lambda s: predict_others(s, codes, torch.tensor([0, 1]), 0.1), scores)


def test_uniform_predictions_cost_ln_k() -> None:
    swav = build()
    loss, metrics = swav.loss(SwavOutput(torch.ones(8, DIM), torch.ones(8, PROTOTYPES)), at(0), log=True)
    assert loss.item() == pytest.approx(math.log(PROTOTYPES), abs=1e-5)
    assert metrics["loss"].item() == pytest.approx(math.log(PROTOTYPES), abs=1e-5)
    assert metrics["code_entropy"].item() == pytest.approx(math.log(PROTOTYPES), abs=1e-5)


def test_assignment_crops_may_be_any() -> None:
    swav = build(assignment=[3])
    output = swav.head(features(0).flatten(0, 1))
    loss, _ = swav.loss(output, at(0))
    scores = output.scores.double().unflatten(0, (CROPS, -1))
    q = sinkhorn_reference(scores[3], 0.05, 3)
    others = [-(q * F.log_softmax(scores[v] / 0.1, dim=1)).sum(1).mean() for v in (0, 1, 2)]
    torch.testing.assert_close(loss.double(), torch.stack(others).mean(), rtol=1e-5, atol=1e-6)


def test_prototypes_have_unit_norm_at_every_forward_and_do_not_move_while_frozen() -> None:
    swav = build(freeze_images=3 * BATCH)
    seen: list[Tensor] = []
    swav.head.prototypes.register_forward_pre_hook(lambda module, _: seen.append(module.weight.detach().clone()))
    optimizer = torch.optim.SGD(swav.head.parameters(), lr=1.0, momentum=0.9, weight_decay=0.1)
    for step in range(6):
        images = step * BATCH
        swav.before_step(at(images))
        loss, _ = swav.loss(swav.head(features(step).flatten(0, 1)), at(images))
        optimizer.zero_grad()
        loss.backward()
        swav.after_backward(at(images))
        optimizer.step()
        swav.after_step(at(images))
    for weight in seen:
        torch.testing.assert_close(weight.norm(dim=1), torch.ones(PROTOTYPES))
    for frozen in seen[1:4]:  # what the steps 0, 1 and 2 left behind
        torch.testing.assert_close(frozen, seen[0], rtol=0, atol=2e-7)
    assert not torch.allclose(seen[4], seen[3], atol=1e-3)


def test_the_queue_is_unused_until_full_and_does_not_fill_before_its_start() -> None:
    queued, plain = build(queue_length=2 * BATCH + 5, queue_start=BATCH), build()
    filled = []
    for step in range(6):
        output = plain.head(features(step).flatten(0, 1))
        same = torch.equal(queued.codes(output, step * BATCH), plain.codes(output, step * BATCH))
        filled.append(int(queued.queue[0].any(dim=1).sum()))
        assert same == (step < 4)  # filled by the steps 1, 2 and 3
    assert filled == [0, BATCH, 2 * BATCH, 2 * BATCH + 5, 2 * BATCH + 5, 2 * BATCH + 5]
    last = plain.head(features(5).flatten(0, 1)).embeddings.unflatten(0, (CROPS, -1))[:2]
    torch.testing.assert_close(queued.queue[:, :BATCH], last)  # newest first


def test_a_step_that_is_taken_back_leaves_the_state_as_it_was() -> None:
    swav = build(queue_length=2 * BATCH)
    guard = Guard(swav.head, torch.optim.SGD(swav.head.parameters(), lr=0.0), swav, torch.device("cpu"))
    swav.loss(swav.head(features(0).flatten(0, 1)), at(0))
    before = [tensor.clone() for tensor in swav.tensors()]
    guard.keep()
    broken = swav.head(features(1).flatten(0, 1).index_fill(0, torch.tensor(3), math.nan))
    loss, _ = swav.loss(broken, at(BATCH))
    assert loss.isnan()
    guard.check(loss, gradients=False)
    guard.settle()
    assert all(map(torch.equal, swav.tensors(), before))
    assert swav.loss(swav.head(features(2).flatten(0, 1)), at(2 * BATCH), log=True)[0].isfinite()


@pytest.mark.parametrize("eps", [0.05, 0.02], ids=["direct", "log domain"])
def test_a_step_that_is_taken_back_while_the_queue_fills_counts_no_rows(eps: float) -> None:
    """It leaves a gap at the queue's end, which takes no part in the codes once the queue is used."""
    swav = build(queue_length=2 * BATCH, eps=eps)
    guard = Guard(swav.head, torch.optim.SGD(swav.head.parameters(), lr=0.0), swav, torch.device("cpu"))
    outputs = [swav.head(features(step).flatten(0, 1)) for step in range(4)]
    for step, output in enumerate(outputs[:2]):
        guard.keep()
        swav.loss(output, at(step * BATCH))
        guard.check(torch.tensor(math.nan if step == 0 else 1.0), gradients=False)
        guard.settle()
    assert int(swav.queue[0].any(dim=1).sum()) == BATCH
    for step, known in (2, outputs[1:3]), (3, outputs[1:]):
        scores = [output.scores.unflatten(0, (CROPS, -1))[:2] for output in reversed(known)]
        expected = torch.stack([sinkhorn_reference(rows, eps, 3)[:BATCH] for rows in torch.cat(scores, dim=1)])
        torch.testing.assert_close(swav.codes(outputs[step], step * BATCH).double(), expected, rtol=1e-4, atol=1e-6)


def test_state_returns_exactly_and_another_shape_is_refused() -> None:
    swav = build(queue_length=2 * BATCH)
    for step in range(3):
        swav.loss(swav.head(features(step).flatten(0, 1)), at(step * BATCH))
    state = {name: value.clone() for name, value in swav.state_dict().items()}
    other = build(queue_length=2 * BATCH)
    other.load_state_dict(state)
    output = swav.head(features(3).flatten(0, 1))
    losses = [objective.loss(output, at(3 * BATCH), log=True) for objective in (swav, other)]
    assert torch.equal(losses[0][0], losses[1][0])
    assert all(torch.equal(value, losses[1][1][name]) for name, value in losses[0][1].items())
    with pytest.raises(UserError, match=r"queue is \[2, 24, 6\], this run's \[2, 36, 6\]"):
        build(queue_length=3 * BATCH).load_state_dict(state)


def test_autocast_leaves_loss_and_scores_in_float32() -> None:
    swav = build(queue_length=BATCH)
    rows = features(0).flatten(0, 1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = swav.head(rows)
        losses = [swav.loss(output, at(step * BATCH), log=True)[0] for step in range(2)]
    assert output.scores.dtype == output.embeddings.dtype == losses[0].dtype == torch.float32
    torch.testing.assert_close(output.embeddings.norm(dim=1), torch.ones(len(rows)))
    plain = build(queue_length=BATCH)
    torch.testing.assert_close(losses, [plain.loss(output, at(step * BATCH))[0] for step in range(2)], rtol=0, atol=0)


@pytest.mark.parametrize("assignment", [[], [4], [-1]])
def test_assignment_crops_outside_the_crops_are_refused(assignment: list[int]) -> None:
    with pytest.raises(UserError, match="assignment crops"):
        build(assignment=assignment)


def test_metrics_tell_spread_from_collapsed_embeddings() -> None:
    torch.manual_seed(0)
    prototypes = F.normalize(torch.randn(PROTOTYPES, DIM), dim=1)

    def metrics(z: Tensor) -> dict[str, float]:
        images = 100 * PROTOTYPES
        values = build().loss(SwavOutput(z, z @ prototypes.T), at(images), log=True)[1]
        return {name: value.item() for name, value in values.items()}

    spread = metrics(F.normalize(torch.randn(CROPS * 500, DIM), dim=1))
    collapsed = metrics(F.normalize(torch.ones(DIM) + 0.01 * torch.randn(CROPS * 500, DIM), dim=1))
    assert spread["embedding_std"] == pytest.approx(1, abs=0.02)
    assert collapsed["embedding_std"] < 0.05
    assert spread["effective_rank"] == pytest.approx(DIM, abs=0.1)
    assert collapsed["effective_rank"] < 1.5
    assert spread["prototypes_used"] > 0.8
    assert collapsed["prototypes_used"] < 0.2
    assert collapsed["prototypes_dead"] > 0.8 > spread["prototypes_dead"]
    assert collapsed["prediction_entropy"] < spread["prediction_entropy"]


def test_effective_rank_counts_no_rounding() -> None:
    """256 dimensions of which two are used: float32 moments would see a third of a dimension in rounding."""
    directions = torch.linalg.qr(torch.randn(256, 2, generator=torch.Generator().manual_seed(0)))[0].T
    angles = torch.linspace(0, 2 * math.pi, 4 * BATCH + 1)[:-1]
    z = torch.stack([angles.cos(), angles.sin()], dim=1) @ directions
    swav = Swav(SwavHead([WIDTH, 256], PROTOTYPES, batch_norm=False), crops=4)
    output = SwavOutput(z, swav.head.prototypes(z))
    _, metrics = swav.loss(output, at(0), log=True)
    singular = torch.linalg.svdvals(z.double()).square()
    shares = singular.sqrt() / singular.sqrt().sum()
    assert metrics["effective_rank"].item() == pytest.approx(torch.special.entr(shares).sum().exp().item(), abs=1e-3)


def train(shard: bool) -> dict[str, Any]:
    """Five SGD steps on this rank's part of the global batch: all that must not depend on the number of ranks."""
    world, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    swav = build(queue_length=BATCH + 5, freeze_images=BATCH)
    if shard:
        fully_shard(swav.head)
    metrics, weights = [], []
    for step in range(5):
        images = step * BATCH
        swav.before_step(at(images))
        rows = features(step).chunk(world, dim=1)[rank].flatten(0, 1)
        loss, values = swav.loss(swav.head(rows), at(images), log=True)
        loss.backward()
        swav.after_backward(at(images))
        metrics.append(values)
        for parameter in swav.head.parameters():
            if parameter.grad is not None:
                if world > 1 and not shard:
                    dist.all_reduce(parameter.grad)
                    parameter.grad.div_(world)
                parameter.data.add_(parameter.grad, alpha=-0.5)
        swav.head.zero_grad()
        weight = swav.head.prototypes.weight.detach()
        weights.append(weight.full_tensor() if isinstance(weight, DTensor) else weight.clone())
    return {"metrics": metrics, "weights": weights, "state": swav.state_dict()}


@pytest.mark.parametrize(("world", "shard"), [(2, False), (2, True), (3, True), (4, False)])
def test_ranks_equal_one_process_with_the_same_global_batch(world: int, shard: bool) -> None:
    alone = train(False)
    assert alone["state"]["queue"].any(dim=2).all()  # the queue took part
    for rank in run_ranks(world, train, shard):
        torch.testing.assert_close(rank, alone, rtol=1e-5, atol=1e-5)


@pytest.mark.learns
def test_it_learns() -> None:
    """On images of eight kinds the loss leaves ln K behind, and images of a kind share their nearest prototype."""
    torch.manual_seed(0)
    trunk = nn.Sequential(nn.Conv2d(3, 16, 3, 2), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    swav = Swav(SwavHead([16, 64, 16], 16, batch_norm=True), crops=3, freeze_images=640)
    network = Network(trunk, swav.head)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.3, momentum=0.9)
    kinds = torch.randn(8, 3, 1, 1)
    for step in range(150):
        kind = torch.randint(8, (64,))
        crops = [kinds[kind] + 0.5 * torch.randn(64, 3, size, size) for size in (12, 12, 8)]
        swav.before_step(at(step * 64))
        outputs = network(crops)
        loss, metrics = swav.loss(outputs, at(step * 64), log=True)
        optimizer.zero_grad()
        loss.backward()
        swav.after_backward(at(step * 64))
        optimizer.step()
    assert metrics["loss"] < math.log(16) - 0.8
    assert metrics["embedding_std"] > 0.5
    nearest = outputs.scores[:64].argmax(dim=1)
    same_kind = kind[:, None] == kind
    same_prototype = nearest[:, None] == nearest
    assert same_prototype[~same_kind].float().mean() < 0.1
    assert same_prototype[same_kind].float().mean() > 0.4


def two_steps(device: str) -> None:
    """The second one uses the queue."""
    with torch.device(device):
        swav = Swav(SwavHead([WIDTH, DIM], PROTOTYPES, batch_norm=True), crops=CROPS, queue_length=BATCH, device=device)
        optimizer = Larc(swav.head.parameters(), lr=0.1, weight_decay=1e-6)
        rows = torch.randn(CROPS * BATCH, WIDTH)
    with no_host_sync(device):
        for step in range(2):
            swav.before_step(at(step * BATCH))
            loss, _ = swav.loss(swav.head(rows), at(step * BATCH))
            loss.backward()
            swav.after_backward(at(step * BATCH))
            optimizer.step()
            swav.after_step(at(step * BATCH))


def test_a_step_makes_the_host_wait_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())  # meta has none
    two_steps("meta")


@pytest.mark.gpu
def test_a_step_makes_the_host_wait_for_nothing_on_a_gpu() -> None:
    two_steps("cuda")


def test_a_batch_in_pieces_gives_the_gradient_of_the_whole() -> None:
    """As the interface promises: the loss needs only outputs, so pieces can be run again for their gradient."""
    batch = features(0)

    def gradients(swav: Swav) -> list[Tensor | None]:
        return [parameter.grad for parameter in swav.head.parameters()]

    whole = build(queue_length=BATCH)
    whole.loss(whole.head(batch.flatten(0, 1)), at(0))[0].backward()

    swav = build(queue_length=BATCH)
    pieces = [piece.flatten(0, 1) for piece in batch.split(5, dim=1)]
    with torch.no_grad():
        outputs = [[rows.unflatten(0, (CROPS, -1)) for rows in swav.head(piece)] for piece in pieces]
    joined = SwavOutput(*(torch.cat(rows, dim=1).flatten(0, 1).requires_grad_() for rows in zip(*outputs, strict=True)))
    swav.loss(joined, at(0))[0].backward()
    assert joined.embeddings.grad is None  # the loss reaches them through the scores
    assert joined.scores.grad is not None
    by_piece = joined.scores.grad.unflatten(0, (CROPS, -1)).split(5, dim=1)
    for piece, gradient in zip(pieces, by_piece, strict=True):
        swav.head(piece).scores.backward(gradient.flatten(0, 1))
    torch.testing.assert_close(gradients(swav), gradients(whole), rtol=1e-5, atol=1e-7)
