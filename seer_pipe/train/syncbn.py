"""BatchNorm over the batches of several ranks, on any backend, and BatchNorm under activation checkpointing."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as _NativeSyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm


class SyncBatchNorm(_BatchNorm):
    """BatchNorm whose statistics are those of the batches of all ranks in `process_group` (None: all ranks).

    For inputs [N, C, …] of any device; torch's own refuses the CPU. On CUDA torch's kernels do the work. Outputs,
    gradients and running statistics equal those of one BatchNorm over the joined batch, also where ranks have
    batches of different sizes. In evaluation it is an ordinary BatchNorm. Names in the state dict are BatchNorm's.
    Made by `convert`.
    """

    process_group: dist.ProcessGroup | None

    def _check_input_dim(self, input: Tensor) -> None:
        if input.dim() < 2:
            raise ValueError(f"expected an input [N, C, …], got {input.dim()} dimensions")

    def forward(self, input: Tensor) -> Tensor:
        world = dist.get_world_size(self.process_group) if dist.is_initialized() else 1
        if not self.training or world == 1:
            return super().forward(input)
        self._check_input_dim(input)
        momentum = self.momentum
        if self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            if momentum is None:  # a cumulative average
                momentum = 1 / float(self.num_batches_tracked)
        group = dist.group.WORLD if self.process_group is None else self.process_group
        function = _NativeSyncBatchNorm if input.is_cuda else _SyncBatchNorm
        statistics = self.running_mean, self.running_var
        return _apply(function, input, self.weight, self.bias, *statistics, self.eps, momentum, group, world)


@torch.compiler.disable  # compiled blocks are cut here: the collectives run as they are
def _apply(function: type[torch.autograd.Function], *args: Any) -> Tensor:
    normalised: Tensor = function.apply(*args)
    return normalised


class _SyncBatchNorm(torch.autograd.Function):
    """One collective forward, of the moments and counts, and one backward, of the two sums that the gradient needs."""

    @staticmethod
    def forward(
        ctx: Any,
        input: Tensor,
        weight: Tensor | None,
        bias: Tensor | None,
        running_mean: Tensor | None,
        running_var: Tensor | None,
        eps: float,
        momentum: float,
        group: dist.ProcessGroup,
        world: int,
    ) -> Tensor:
        channels = input.shape[1]
        var, mean = torch.var_mean(_wide(input), _all_but_channels(input), correction=0)
        count = mean.new_tensor([input.numel() // channels])
        gathered = mean.new_empty(world * (2 * channels + 1))
        dist.all_gather_single(gathered, torch.cat([mean, var, count]), group)
        means, variances, counts = gathered.view(world, -1).split([channels, channels, 1], dim=1)
        # Joined as moments about the common mean: a sum of squares would lose a spread small beside its mean.
        total = counts.sum()
        mean = (counts * means).sum(dim=0) / total
        var = (counts * (variances + (means - mean).square())).sum(dim=0) / total
        if running_mean is not None and running_var is not None:
            running_mean.lerp_(mean.to(running_mean.dtype), momentum)
            running_var.lerp_((var * total / (total - 1)).to(running_var.dtype), momentum)
        ctx.save_for_backward(input, weight, mean, (var + eps).rsqrt(), total)
        ctx.group = group
        return F.batch_norm(input, mean, var, weight, bias, training=False, eps=eps)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        input, weight, mean, inverse_std, total = ctx.saved_tensors
        gradient, dims = _wide(gradients[0]), _all_but_channels(input)
        shape = [1, -1] + [1] * (input.dim() - 2)
        normalized = (_wide(input) - mean.view(shape)) * inverse_std.view(shape)
        sums = torch.stack([gradient.sum(dims), (gradient * normalized).sum(dims)])
        of_bias, of_weight = sums.clone()  # of this rank alone, like every other parameter's gradient
        dist.all_reduce(sums, group=ctx.group)
        shift, slope = (sums / total).view(2, *shape)
        scale = inverse_std if weight is None else inverse_std * weight
        of_input = (gradient - shift - normalized * slope) * scale.view(shape)
        learned = (None, None) if weight is None else (of_weight, of_bias)
        return of_input.to(input.dtype), *learned, *[None] * 6


def _wide(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _all_but_channels(tensor: Tensor) -> list[int]:
    return [0, *range(2, tensor.dim())]


def convert(module: nn.Module, process_group: dist.ProcessGroup | None = None) -> None:
    """Makes every BatchNorm in `module` synchronous over `process_group`, in place.

    The modules stay the same objects with another class: parameters, buffers, hooks, and references to them hold.
    Raises TypeError for a BatchNorm of an unknown class, whose forward may do more than normalise.
    """
    for name, layer in module.named_modules():
        if not isinstance(layer, _BatchNorm):
            continue
        if type(layer) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, SyncBatchNorm):
            raise TypeError(f"{name}: cannot make a {type(layer).__name__} synchronous")
        layer.__class__ = SyncBatchNorm
        layer.process_group = process_group  # type: ignore[assignment]


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Forwards within it leave no trace in the running statistics of `module`'s BatchNorms, in training mode too.

    They update them as always, and on leaving the former values are put back: so the forward is the same one, also
    for a compiler, which would make another program for another momentum.
    """
    buffers = [buffer for layer in module.modules() if isinstance(layer, _BatchNorm) for buffer in layer.buffers()]
    kept = [buffer.clone() for buffer in buffers]
    try:
        yield
    finally:
        # autograd knows them as saved, though no gradient in training mode depends on them
        with torch.no_grad(), torch.autograd._unsafe_preserve_version_counter(tuple(buffers)):
            for buffer, value in zip(buffers, kept, strict=True):
                buffer.copy_(value)


def bn_safe_checkpoint_context(
    module: nn.Module,
) -> Callable[[], tuple[AbstractContextManager[None], AbstractContextManager[None]]]:
    """The `context_fn` with which activation checkpointing of `module` updates BatchNorm once a step, not twice.

    For ``checkpoint(module, x, use_reentrant=False, context_fn=…)`` and ``checkpoint_wrapper(module, context_fn=…)``.
    """
    return lambda: (nullcontext(), frozen_statistics(module))
