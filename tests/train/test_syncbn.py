"""Synchronous BatchNorm against one BatchNorm over the joined batch, and statistics under checkpointing."""

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.algorithms._checkpoint.checkpoint_wrapper import checkpoint_wrapper
from torch.distributed.fsdp import fully_shard
from torch.utils.checkpoint import checkpoint

from seer_pipe import config as settings
from seer_pipe.errors import UserError
from seer_pipe.train.syncbn import (
    PieceStatistics,
    Slices,
    SyncBatchNorm,
    bn_safe_checkpoint_context,
    convert,
    frozen_statistics,
    groups,
    slice_batches,
)
from tests.distributed import run_ranks

CHANNELS = 5


def layer(affine: bool = True, momentum: float | None = 0.3) -> nn.Module:
    torch.manual_seed(0)
    norm = nn.BatchNorm2d(CHANNELS, affine=affine, momentum=momentum)
    if affine:
        nn.init.normal_(norm.weight)
        nn.init.normal_(norm.bias)
    return norm


def batch(step: int, dtype: torch.dtype) -> Tensor:
    """12 images whose channels' means are far from zero, one of them very far beside its spread."""
    generator = torch.Generator().manual_seed(step)
    offset = torch.tensor([0.0, 1.0, -5.0, 20.0, 1000.0]).view(1, -1, 1, 1)
    return (torch.randn(12, CHANNELS, 3, 2, generator=generator) + offset).to(dtype)


def run(norm: nn.Module, cuts: list[int], rank: int, dtype: torch.dtype) -> dict[str, Any]:
    """Two training steps on this rank's images; then an evaluation."""
    norm.to(dtype)
    outputs, by_input = [], []
    for step in range(2):
        images = batch(step, dtype).split(cuts)[rank].clone().requires_grad_()
        out = norm(images)
        (out * batch(step + 10, dtype).split(cuts)[rank].sin()).square().sum().backward()
        outputs.append(out.detach())
        by_input.append(images.grad)
    norm.eval()
    outputs.append(norm(batch(2, dtype).split(cuts)[rank]).detach())
    gradients = [parameter.grad for parameter in norm.parameters()]
    return {"outputs": outputs, "by_input": by_input, "gradients": gradients, "buffers": dict(norm.named_buffers())}


def run_synchronous(cuts: list[int], dtype: torch.dtype, options: dict[str, Any]) -> dict[str, Any]:
    norm = layer(**options)
    convert(norm)
    return run(norm, cuts, dist.get_rank(), dtype)


@pytest.mark.parametrize(
    ("cuts", "dtype", "options"),
    [
        ([6, 6], torch.float32, {}),
        ([3, 3, 3, 3], torch.float64, {"affine": False}),
        ([1, 5, 4, 2], torch.float64, {}),
        ([5, 7], torch.float64, {"momentum": None}),
    ],
)
def test_ranks_equal_one_large_batch(cuts: list[int], dtype: torch.dtype, options: dict[str, Any]) -> None:
    whole = run(layer(**options), [12], 0, dtype)
    ranks = run_ranks(len(cuts), run_synchronous, cuts, dtype, options)
    tolerance = 1e-3 if dtype == torch.float32 else 1e-9  # a sum of squares would be out by 0.1 in float32
    assert_close = partial(torch.testing.assert_close, rtol=tolerance, atol=tolerance)
    for step in range(3):
        assert_close(torch.cat([r["outputs"][step] for r in ranks]), whole["outputs"][step])
    for step in range(2):
        joined = torch.cat([r["by_input"][step] for r in ranks])
        assert_close(joined, whole["by_input"][step])
    for index, gradient in enumerate(whole["gradients"]):
        assert_close(sum(r["gradients"][index] for r in ranks), gradient)
    for rank in ranks:
        assert_close(rank["buffers"], whole["buffers"])


def mean_within_pairs() -> Any:
    group, _ = dist.new_subgroups(group_size=2)
    norm = nn.BatchNorm1d(1, momentum=1.0)
    convert(norm, group)
    norm(torch.full((4, 1), float(dist.get_rank())) + torch.tensor([[-1.0], [1.0], [-1.0], [1.0]]))
    return norm.running_mean


def test_groups_of_ranks_have_their_own_statistics() -> None:
    assert [mean.item() for mean in run_ranks(4, mean_within_pairs)] == [0.5, 0.5, 2.5, 2.5]


def train_of(batch: int, sync_bn: Any, accumulate: int = 1) -> settings.Train:
    return settings.Train.model_validate({"batch": batch, "sync_bn": sync_bn, "accumulate": accumulate})


@pytest.mark.parametrize(
    ("world", "train", "expected"),
    [
        (64, train_of(4096, {"images": 512}), (8, None)),  # SwAV as published
        (8, train_of(4096, {"images": 512}), (1, None)),
        (1, train_of(4096, {"images": 512}), (1, Slices(8, 512))),
        (4, train_of(4096, {"images": 512}), (1, Slices(2, 512))),
        (4, train_of(4096, {"images": 512}, accumulate=4), (2, None)),  # 256 at a time
        (496, train_of(7936, {"images": 128}), (8, None)),
        (4, train_of(64, True), (4, None)),
        (4, train_of(64, 2), (2, None)),
        (2, train_of(64, 8), (2, None)),
        (4, train_of(64, False), (1, None)),
    ],
)
def test_images_of_a_group_mean_the_same_on_any_number_of_ranks(
    world: int, train: settings.Train, expected: Any
) -> None:
    assert groups(train, world) == expected


@pytest.mark.parametrize(
    ("world", "batch", "sync_bn"), [(6, 96, {"images": 24}), (1, 64, {"images": 48}), (2, 64, {"images": 1}), (3, 6, 2)]
)
def test_groups_that_fit_neither_way_are_refused(world: int, batch: int, sync_bn: Any) -> None:
    with pytest.raises(UserError, match=r"train\.sync_bn .*no whole number of"):
        groups(train_of(batch, sync_bn), world)


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_slices_are_as_ranks_with_their_own_statistics(memory_format: torch.memory_format) -> None:
    """Three crops of 8 images in slices of 4: outputs, gradients and statistics of two BatchNorms with a half each."""
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(3 * 8, CHANNELS, 3, 2, generator=generator).double() + 5
    rows = rows.contiguous(memory_format=memory_format)
    halves = rows.unflatten(0, (3, 2, 4)).transpose(0, 1).flatten(1, 2)
    norms = [layer().double() for _ in range(2)]
    sliced = layer().double()
    slice_batches(sliced, 2, 4)
    inputs = rows.clone(memory_format=torch.preserve_format).requires_grad_()
    outputs = sliced(inputs)
    assert outputs.is_contiguous(memory_format=memory_format)
    parts = [half.clone().requires_grad_() for half in halves]
    expected = [norm(part) for norm, part in zip(norms, parts, strict=True)]
    (outputs * rows.sin()).square().sum().backward()
    for out, half in zip(expected, halves, strict=True):
        (out * half.sin()).square().sum().backward()

    def joined(tensors: list[Tensor]) -> Tensor:
        return torch.stack(tensors).unflatten(1, (3, 4)).transpose(0, 1).flatten(0, 2)

    torch.testing.assert_close(outputs, joined(expected))
    torch.testing.assert_close(inputs.grad, joined([part.grad for part in parts]))
    for index, parameter in enumerate(sliced.parameters()):
        torch.testing.assert_close(parameter.grad, sum(list(norm.parameters())[index].grad for norm in norms))
    for key in ("running_mean", "running_var"):
        mean = sum(getattr(norm, key) for norm in norms) / 2
        torch.testing.assert_close(getattr(sliced, key), mean)
    assert sliced.num_batches_tracked == 1
    sliced.eval(), norms[0].eval()
    norms[0].load_state_dict(sliced.state_dict())
    torch.testing.assert_close(sliced(rows), norms[0](rows))


def test_pieces_move_running_statistics_once() -> None:
    """Momentum acts as it would on the whole batch, twice for two resolutions; the means are exactly the same."""
    pieces, whole = layer().double(), layer().double()
    sizes = [torch.randn(12, CHANNELS, side, 2, generator=torch.Generator().manual_seed(side)).double() + 3
             for side in (4, 2)]  # fmt: skip
    statistics = PieceStatistics(pieces)
    for number in range(3):
        for images in sizes:
            pieces(images.chunk(3)[number])
        statistics.add()
    statistics.settle()
    for images in sizes:
        whole(images)
    torch.testing.assert_close(pieces.running_mean, whole.running_mean)
    torch.testing.assert_close(pieces.running_var, whole.running_var, rtol=0.1, atol=0)
    assert pieces.num_batches_tracked == whole.num_batches_tracked == 2


def half_precision() -> tuple[Any, ...]:
    norm = layer()
    convert(norm)
    images = batch(0, torch.bfloat16).requires_grad_()
    out = norm(images)
    out.float().square().sum().backward()
    assert images.grad is not None
    return out.dtype, images.grad.dtype, norm.running_mean


def test_half_precision_keeps_statistics_in_float32() -> None:
    for out, gradient, mean in run_ranks(2, half_precision):
        assert out == gradient == torch.bfloat16
        torch.testing.assert_close(mean, 0.3 * batch(0, torch.bfloat16).float().mean((0, 2, 3)))


def test_alone_and_in_evaluation_it_is_an_ordinary_batchnorm() -> None:
    norm, plain = layer(), layer()
    convert(norm)
    for training in (True, False):
        norm.train(training), plain.train(training)
        assert torch.equal(norm(batch(0, torch.float32)), plain(batch(0, torch.float32)))
    torch.testing.assert_close(norm.state_dict(), plain.state_dict(), rtol=0, atol=0)


def test_convert_keeps_objects_hooks_and_names() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Sequential(nn.BatchNorm2d(4)))
    before, names, last = net[1], list(net.state_dict()), net.get_submodule("2.0")
    calls: list[str] = []
    net[1].register_forward_hook(lambda *_: calls.append("hook"))
    convert(net)
    assert net[1] is before
    assert isinstance(net[1], SyncBatchNorm)
    assert isinstance(last, SyncBatchNorm)
    assert list(net.state_dict()) == names
    net(torch.randn(2, 3, 4, 4))
    assert calls == ["hook"]
    convert(net)  # again is no error


def test_a_batchnorm_that_does_more_is_not_converted_in_silence() -> None:
    class Activated(nn.BatchNorm2d):
        def forward(self, input: Tensor) -> Tensor:
            return super().forward(input).relu()

    with pytest.raises(TypeError, match="1: cannot make a Activated a SyncBatchNorm"):
        convert(nn.Sequential(nn.Identity(), Activated(3)))


def trunk() -> nn.Sequential:
    torch.manual_seed(0)
    blocks = [nn.Sequential(nn.Conv2d(3, 3, 3, padding=1), nn.BatchNorm2d(3), nn.ReLU()) for _ in range(3)]
    return nn.Sequential(*blocks)


def by_function(block: nn.Module) -> Callable[[Tensor], Tensor]:
    context = bn_safe_checkpoint_context(block)
    return lambda x: checkpoint(block, x, use_reentrant=False, context_fn=context)


def by_wrapper(block: nn.Module) -> Callable[[Tensor], Tensor]:
    return checkpoint_wrapper(block, context_fn=bn_safe_checkpoint_context(block))


def steps(
    net: nn.Sequential, wrap: Callable[[nn.Module], Callable[[Tensor], Tensor]] | None, rank: int = 0, world: int = 1
) -> tuple[dict[str, Tensor], list[Any]]:
    """Two steps of two forwards each (two resolutions): buffers and gradients."""
    blocks = list(net) if wrap is None else [wrap(block) for block in net]
    for step in range(2):
        loss = torch.zeros(())
        for size in (6, 4):
            images = torch.randn(8, 3, size, size, generator=torch.Generator().manual_seed(10 * step + size))
            out = images.chunk(world)[rank]
            for block in blocks:
                out = block(out)
            loss = loss + out.square().mean()
        loss.backward()
    return dict(net.named_buffers()), [p.grad for p in net.parameters()]


@pytest.mark.parametrize("wrap", [by_function, by_wrapper])
def test_checkpointing_updates_statistics_once_a_forward(wrap: Callable[[nn.Module], Any]) -> None:
    buffers, gradients = steps(trunk(), None)
    own_buffers, own_gradients = steps(trunk(), wrap)
    assert own_buffers["0.1.num_batches_tracked"] == 4
    torch.testing.assert_close(own_buffers, buffers, rtol=0, atol=0)
    torch.testing.assert_close(own_gradients, gradients, rtol=0, atol=0)


def test_torchs_own_checkpointing_would_update_them_twice() -> None:
    """Why the context is there; when this fails, torch has mended it and the context can go."""
    buffers, _ = steps(trunk(), checkpoint_wrapper)
    assert buffers["0.1.num_batches_tracked"] == 8


def synchronous_checkpointed(shard: bool) -> tuple[dict[str, Tensor], list[Any]]:
    net = trunk()
    convert(net)
    if not shard:
        return steps(net, by_wrapper, dist.get_rank(), dist.get_world_size())
    for index, block in enumerate(net):
        net[index] = checkpoint_wrapper(block, context_fn=bn_safe_checkpoint_context(block))
        fully_shard(net[index])
    fully_shard(net)
    buffers, gradients = steps(net, None, dist.get_rank(), dist.get_world_size())
    clean = {name.replace("_checkpoint_wrapped_module.", ""): buffer for name, buffer in buffers.items()}
    return clean, [gradient.full_tensor() for gradient in gradients]


@pytest.mark.parametrize("shard", [False, True])
def test_synchronous_checkpointed_and_sharded_together(shard: bool) -> None:
    buffers, gradients = steps(trunk(), None)
    ranks = run_ranks(2, synchronous_checkpointed, shard)
    for own_buffers, own_gradients in ranks:
        torch.testing.assert_close(own_buffers, buffers, rtol=1e-5, atol=1e-6)
        if shard:
            torch.testing.assert_close(own_gradients, gradients, rtol=1e-4, atol=1e-6)
    if not shard:
        mean = [(a + b) / 2 for a, b in zip(*(rank[1] for rank in ranks), strict=True)]
        torch.testing.assert_close(mean, gradients, rtol=1e-4, atol=1e-6)


def test_frozen_statistics_come_back_after_an_error() -> None:
    norm = nn.BatchNorm1d(2, momentum=0.3)
    norm(torch.randn(4, 2))
    before = {name: buffer.clone() for name, buffer in norm.named_buffers()}

    def fail() -> None:
        with frozen_statistics(norm):
            normalised = norm(torch.randn(4, 2))
            torch.testing.assert_close(
                normalised, F.batch_norm(normalised, None, None, training=True), atol=1e-4, rtol=0
            )
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert norm.momentum == 0.3
    torch.testing.assert_close(dict(norm.named_buffers()), before, rtol=0, atol=0)
