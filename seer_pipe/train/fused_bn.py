"""BatchNorm and the ReLU behind it as Triton kernels over NHWC: two forward, two backward, also over several ranks.

    _moments        sums of the input about its first row, and of their squares  -> mean and variance
    _normalise      relu((x - mean) * scale + bias), scale = weight / std
    _gradient_sums  of the gradient behind the ReLU, and of it times the normalised input
    _gradient       of the input

Only the input is kept for the backward pass: whether the ReLU let a value through is computed again. Sums are float32.
With TRITON_INTERPRET=1 at the first import of triton the same kernels run on a CPU, slowly.
"""

from __future__ import annotations

import os
from itertools import pairwise
from typing import Any

import torch
import torch.distributed as dist
import triton
import triton.language as tl
from torch import Tensor, nn

from seer_pipe.errors import UserError
from seer_pipe.models import Trunk
from seer_pipe.train.syncbn import SyncBatchNorm, count_batch, follow_moments, join_moments

ROWS, CHANNELS = 64, 64  # of a block, `tall` and `wide` in the kernels
SPLITS = 256  # at most, of the rows, for sums


def fuse_trunks(network: nn.Module, device: torch.device, layout: torch.memory_format) -> None:
    """`fuse` every trunk in `network`, momentum copies too; UserError where that cannot be."""
    if device.type != "cuda" and os.environ.get("TRITON_INTERPRET") != "1":
        raise UserError("train.fused_bn: its kernels run on a GPU alone; set it to false")
    if layout != torch.channels_last:
        raise UserError("train.fused_bn: its kernels want NHWC; set train.channels_last to true, or it to false")
    for trunk in [module for module in network.modules() if isinstance(module, Trunk)]:
        if not fuse(trunk):
            raise UserError(f"train.fused_bn: {trunk.name} has no BatchNorm over whole batches with a ReLU next to it "
                            "in an nn.Sequential; set it to false")  # fmt: skip


def fuse(module: nn.Module) -> int:
    """Join every BatchNorm in `module` that has a ReLU next to it in an nn.Sequential with that, in place; how many.

    As `syncbn.convert`, which comes before it if any: the BatchNorms stay the same objects with another class, and
    names in the state dict hold. The ReLU becomes an identity.
    """
    joined = 0
    for parent in [parent for parent in module.modules() if isinstance(parent, nn.Sequential)]:
        for (_, norm), (name, after) in pairwise(list(parent.named_children())):
            if type(norm) in (nn.BatchNorm2d, SyncBatchNorm) and type(after) is nn.ReLU:
                norm.synchronous = type(norm) is SyncBatchNorm  # type: ignore[assignment]
                norm.__class__ = FusedBatchNorm
                setattr(parent, name, nn.Identity())
                joined += 1
    return joined


class FusedBatchNorm(SyncBatchNorm):
    """BatchNorm and ReLU of inputs [N, C, H, W]; the statistics are those of all ranks where it is `synchronous`."""

    synchronous: bool

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input).relu()
        world, group = 1, None
        if self.synchronous and dist.is_initialized():
            world = dist.get_world_size(self.process_group)
            group = dist.group.WORLD if self.process_group is None else self.process_group
        momentum = count_batch(self)
        return _apply(input, self.weight, self.bias, self.running_mean, self.running_var, self.eps, momentum, group,
                      world)  # fmt: skip


@torch.compiler.disable
def _apply(*args: Any) -> Tensor:
    normalised: Tensor = _BatchNormRelu.apply(*args)
    return normalised


class _BatchNormRelu(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor,
        bias: Tensor,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        eps: float,
        momentum: float,
        group: dist.ProcessGroup | None,
        world: int,
    ) -> Tensor:
        input = input.contiguous(memory_format=torch.channels_last)
        count, channels = input.numel() // input.shape[1], input.shape[1]
        parts, each = _parts(count, channels, input.device)
        _moments[_grid(channels, len(parts))](input, parts, count, channels, each, ROWS, CHANNELS)
        shifted, squares = parts.sum(0) / count
        mean = input[0, :, 0, 0].float() + shifted
        var = (squares - shifted.square()).clamp_min_(0)
        total = mean.new_full([], count)
        if group is not None and world > 1:
            mean, var, total = join_moments(mean, var, count, group, world)
        follow_moments(running_mean, running_var, mean, var, total, momentum)
        inverse = (var + eps).rsqrt()
        scale, bias = inverse * weight, bias.float()
        output = torch.empty_like(input)
        grid = _grid(channels, triton.cdiv(count, ROWS))
        _normalise[grid](input, mean, scale, bias, output, count, channels, ROWS, CHANNELS)
        ctx.save_for_backward(input, mean, inverse, scale, bias, total)
        ctx.group = group if world > 1 else None
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        input, mean, inverse, scale, bias, total = ctx.saved_tensors
        gradient = gradients[0].contiguous(memory_format=torch.channels_last)
        count, channels = input.numel() // input.shape[1], input.shape[1]
        parts, each = _parts(count, channels, input.device)
        known = input, gradient, mean, inverse, scale, bias
        _gradient_sums[_grid(channels, len(parts))](*known, parts, count, channels, each, ROWS, CHANNELS)
        sums = parts.sum(0)
        of_bias, of_weight = sums.clone()  # of this rank alone, like every other parameter's gradient
        if ctx.group is not None:
            dist.all_reduce(sums, group=ctx.group)
        shift, slope = sums / total
        of_input = torch.empty_like(input)
        grid = _grid(channels, triton.cdiv(count, ROWS))
        _gradient[grid](*known, shift, slope, of_input, count, channels, ROWS, CHANNELS)
        return of_input, of_weight, of_bias, *[None] * 6


def _parts(rows: int, channels: int, device: torch.device) -> tuple[Tensor, int]:
    """Where the sums of parts of the rows go, [parts, 2, channels], and the rows of a part, whole blocks."""
    each = triton.cdiv(triton.cdiv(rows, ROWS), SPLITS) * ROWS
    return torch.empty(triton.cdiv(rows, each), 2, channels, device=device), each


def _grid(channels: int, parts: int) -> tuple[int, int]:
    return parts, triton.cdiv(channels, CHANNELS)


@triton.jit
def _block(row, column, rows, channels):
    """Where the numbers of a block are, and which of them there are."""
    return row[:, None].to(tl.int64) * channels + column[None, :], (row < rows)[:, None] & (column < channels)[None, :]


@triton.jit
def _moments(x, sums, rows, channels, each, tall: tl.constexpr, wide: tl.constexpr):
    part, column = tl.program_id(0), tl.program_id(1) * wide + tl.arange(0, wide)
    inside = column < channels
    first = tl.load(x + column, inside, 0.0).to(tl.float32)
    total = tl.zeros([wide], tl.float32)
    squares = tl.zeros([wide], tl.float32)
    start = part * each
    end = tl.minimum(start + each, rows)
    while start < end:
        row = start + tl.arange(0, tall)
        at, known = _block(row, column, end, channels)
        value = tl.where(known, tl.load(x + at, known, 0.0).to(tl.float32) - first[None, :], 0.0)
        total += tl.sum(value, 0)
        squares += tl.sum(value * value, 0)
        start += tall
    tl.store(sums + part * 2 * channels + column, total, inside)
    tl.store(sums + (part * 2 + 1) * channels + column, squares, inside)


@triton.jit
def _normalise(x, mean, scale, bias, out, rows, channels, tall: tl.constexpr, wide: tl.constexpr):
    row = tl.program_id(0) * tall + tl.arange(0, tall)
    column = tl.program_id(1) * wide + tl.arange(0, wide)
    inside = column < channels
    at, known = _block(row, column, rows, channels)
    centred = tl.load(x + at, known, 0.0).to(tl.float32) - tl.load(mean + column, inside, 0.0)[None, :]
    normal = centred * tl.load(scale + column, inside, 0.0)[None, :] + tl.load(bias + column, inside, 0.0)[None, :]
    tl.store(out + at, tl.where(normal <= 0, 0.0, normal).to(out.dtype.element_ty), known)  # what is not finite stays


@triton.jit
def _passed(gradient, centred, scale, bias, at, column, inside, known):
    """The gradient where the ReLU let the value through."""
    normal = centred * tl.load(scale + column, inside, 0.0)[None, :] + tl.load(bias + column, inside, 0.0)[None, :]
    return tl.where(known & ~(normal <= 0), tl.load(gradient + at, known, 0.0).to(tl.float32), 0.0)


@triton.jit
def _gradient_sums(
    x, gradient, mean, inverse, scale, bias, sums, rows, channels, each, tall: tl.constexpr, wide: tl.constexpr
):
    part, column = tl.program_id(0), tl.program_id(1) * wide + tl.arange(0, wide)
    inside = column < channels
    middle = tl.load(mean + column, inside, 0.0)[None, :]
    total = tl.zeros([wide], tl.float32)
    products = tl.zeros([wide], tl.float32)
    start = part * each
    end = tl.minimum(start + each, rows)
    while start < end:
        row = start + tl.arange(0, tall)
        at, known = _block(row, column, end, channels)
        centred = tl.load(x + at, known, 0.0).to(tl.float32) - middle
        passed = _passed(gradient, centred, scale, bias, at, column, inside, known)
        total += tl.sum(passed, 0)
        products += tl.sum(passed * centred, 0)
        start += tall
    products *= tl.load(inverse + column, inside, 0.0)
    tl.store(sums + part * 2 * channels + column, total, inside)
    tl.store(sums + (part * 2 + 1) * channels + column, products, inside)


@triton.jit
def _gradient(
    x, gradient, mean, inverse, scale, bias, shift, slope, out, rows, channels, tall: tl.constexpr, wide: tl.constexpr
):
    row = tl.program_id(0) * tall + tl.arange(0, tall)
    column = tl.program_id(1) * wide + tl.arange(0, wide)
    inside = column < channels
    at, known = _block(row, column, rows, channels)
    centred = tl.load(x + at, known, 0.0).to(tl.float32) - tl.load(mean + column, inside, 0.0)[None, :]
    passed = _passed(gradient, centred, scale, bias, at, column, inside, known)
    slope_of = (tl.load(slope + column, inside, 0.0) * tl.load(inverse + column, inside, 0.0))[None, :]
    found = passed - tl.load(shift + column, inside, 0.0)[None, :] - centred * slope_of
    found *= tl.load(scale + column, inside, 0.0)[None, :]
    tl.store(out + at, found.to(out.dtype.element_ty), known)
