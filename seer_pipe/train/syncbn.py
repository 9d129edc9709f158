"""BatchNorm over the batches of several ranks, on any backend, and BatchNorm under activation checkpointing."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules._functions import SyncBatchNorm as _NativeSyncBatchNorm
from torch.nn.modules.batchnorm import _BatchNorm

from seer_pipe import config as settings
from seer_pipe.distributed.collectives import all_gather_single
from seer_pipe.errors import UserError


class Slices(NamedTuple):
    """How a rank's images are cut for BatchNorm."""

    number: int
    images: int  # of each


def groups(train: settings.Train, world: int) -> tuple[int, Slices | None]:
    """Over how many neighbouring ranks BatchNorm is to be; where over one alone, the slices of its images, if any.

    UserError where train.sync_bn fits neither way.
    """
    wanted = train.sync_bn
    if isinstance(wanted, bool):
        return (world if wanted else 1), None
    if isinstance(wanted, int):
        if wanted < world and world % wanted:
            raise UserError(f"train.sync_bn {wanted}: {world} ranks are no whole number of such groups")
        return min(wanted, world), None
    held, images = max(1, train.batch // world // train.accumulate), wanted.images
    if 1 < images <= held and held % images == 0:
        return 1, Slices(held // images, images) if held > images else None
    if images > held and images % held == 0 and world % (images // held) == 0:
        return images // held, None
    raise UserError(
        f"train.sync_bn {{images: {images}}}: {world} ranks that normalise {held} images each at a time are no whole "
        f"number of groups of {images}, nor {held} images of such slices; other ranks or train.accumulate may fit, or "
        "set train.sync_bn: true"
    )


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
        momentum = count_batch(self)
        group = dist.group.WORLD if self.process_group is None else self.process_group
        function = _NativeSyncBatchNorm if input.is_cuda else _SyncBatchNorm
        statistics = self.running_mean, self.running_var
        return _apply(function, input, self.weight, self.bias, *statistics, self.eps, momentum, group, world)


def count_batch(layer: _BatchNorm) -> float:
    """Count one more, and return the momentum of its statistics."""
    momentum: float | None = layer.momentum
    if layer.num_batches_tracked is not None:
        layer.num_batches_tracked.add_(1)
        if momentum is None:  # a cumulative average
            momentum = 1 / float(layer.num_batches_tracked)
    assert momentum is not None
    return momentum


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
        var, mean = torch.var_mean(_wide(input), _all_but_channels(input), correction=0)
        mean, var, total = join_moments(mean, var, input.numel() // input.shape[1], group, world)
        follow_moments(running_mean, running_var, mean, var, total, momentum)
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


def join_moments(
    mean: Tensor, var: Tensor, count: int, group: dist.ProcessGroup, world: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Mean, variance and number of the values of all ranks, from those of each; one collective."""
    channels = len(mean)
    gathered = mean.new_empty(world * (2 * channels + 1))
    all_gather_single(gathered, torch.cat([mean, var, mean.new_full([1], count)]), group)
    means, variances, counts = gathered.view(world, -1).split([channels, channels, 1], dim=1)
    # Joined as moments about the common mean: a sum of squares would lose a spread small beside its mean.
    total = counts.sum()
    mean = (counts * means).sum(dim=0) / total
    return mean, (counts * (variances + (means - mean).square())).sum(dim=0) / total, total


def follow_moments(
    running_mean: Tensor | None, running_var: Tensor | None, mean: Tensor, var: Tensor, total: Tensor, momentum: float
) -> None:
    if running_mean is not None and running_var is not None:
        running_mean.lerp_(mean.to(running_mean.dtype), momentum)
        running_var.lerp_((var * total / (total - 1)).to(running_var.dtype), momentum)


def _wide(tensor: Tensor) -> Tensor:
    """At least float32."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def _all_but_channels(tensor: Tensor) -> list[int]:
    return [0, *range(2, tensor.dim())]


class SlicedBatchNorm(_BatchNorm):
    """BatchNorm that normalises a batch in slices of its images, each as if a rank of its own held it.

    For inputs [V · S · n, C, …] in crop-major rows: V crops of S slices of n images; a slice's statistics are over all
    crops of its images. The running ones are the means of the slices', as a checkpoint has those of several ranks.
    In evaluation it is an ordinary BatchNorm. Made by `slice_batches`.
    """

    slices: Slices

    def _check_input_dim(self, input: Tensor) -> None:
        if input.shape[0] % (self.slices.number * self.slices.images):
            raise ValueError(f"expected rows of whole crops of {self.slices}, got {input.shape[0]}")

    def forward(self, input: Tensor) -> Tensor:
        if not self.training:
            return super().forward(input)
        self._check_input_dim(input)
        slices, images = self.slices
        rows = input.split(images)  # of a slice each, its crops in turn; split and joined, they keep their layout
        normalised, means, variances = [], [], []
        wide = torch.promote_types(input.dtype, torch.float32)
        for number in range(slices):
            mean, variance = (input.new_zeros(self.num_features, dtype=wide) for _ in range(2))
            part = torch.cat(rows[number::slices])
            part = F.batch_norm(part, mean, variance, self.weight, self.bias, True, momentum=1.0, eps=self.eps)
            normalised.append(part.split(images))
            means.append(mean)
            variances.append(variance)
        if self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None:
            self.num_batches_tracked.add_(1)
            momentum = 1 / float(self.num_batches_tracked) if self.momentum is None else self.momentum
            self.running_mean.lerp_(torch.stack(means).mean(0).to(self.running_mean.dtype), momentum)
            self.running_var.lerp_(torch.stack(variances).mean(0).to(self.running_var.dtype), momentum)
        return torch.cat([part for crop in zip(*normalised, strict=True) for part in crop])


def convert(module: nn.Module, process_group: dist.ProcessGroup | None = None) -> None:
    """Makes every BatchNorm in `module` synchronous over `process_group`, in place.

    The modules stay the same objects with another class: parameters, buffers, hooks, and references to them hold.
    Raises TypeError for a BatchNorm of an unknown class, whose forward may do more than normalise.
    """
    for layer in _plain_norms(module, SyncBatchNorm):
        layer.__class__ = SyncBatchNorm
        layer.process_group = process_group  # type: ignore[assignment]


def slice_batches(module: nn.Module, number: int, images: int) -> None:
    """Makes every BatchNorm in `module` normalise `number` slices of `images` images each, in place, as `convert`."""
    for layer in _plain_norms(module, SlicedBatchNorm):
        layer.__class__ = SlicedBatchNorm
        layer.slices = Slices(number, images)  # type: ignore[assignment]


def _plain_norms(module: nn.Module, already: type[_BatchNorm]) -> Iterator[_BatchNorm]:
    for name, layer in module.named_modules():
        if not isinstance(layer, _BatchNorm):
            continue
        if type(layer) not in (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, already):
            raise TypeError(f"{name}: cannot make a {type(layer).__name__} a {already.__name__}")
        yield layer


class PieceStatistics:
    """The running statistics of `module`'s BatchNorms over the pieces of one step, so that momentum counts once.

    Each piece moves them from where the step began, and in the end they are the mean of all. Of means that is exact, as
    if the batch had been whole; the variance is the mean of the pieces' own, which they were normalised by, without
    that between the pieces' means: as of ranks with BatchNorms of their own.
    """

    def __init__(self, module: nn.Module) -> None:
        self._live = _statistics(module)
        self._before = [buffer.clone() for buffer in self._live]
        self._sums = [torch.zeros_like(buffer) for buffer in self._live]
        self._pieces = 0

    @torch.no_grad()
    def add(self) -> None:
        """After a piece's backward: keep what it left, and go back to where the step began."""
        for live, before, total in zip(self._live, self._before, self._sums, strict=True):
            total.add_(live)
            live.copy_(before)
        self._pieces += 1

    @torch.no_grad()
    def settle(self) -> None:
        """After the last piece."""
        for live, total in zip(self._live, self._sums, strict=True):
            live.copy_(total.div_(self._pieces) if total.is_floating_point() else total.floor_divide_(self._pieces))


def _statistics(module: nn.Module) -> list[Tensor]:
    return [buffer for layer in module.modules() if isinstance(layer, _BatchNorm) for buffer in layer.buffers()]


@contextmanager
def frozen_statistics(module: nn.Module) -> Iterator[None]:
    """Forwards within it leave no trace in the running statistics of `module`'s BatchNorms, in training mode too.

    They update them as always, and on leaving the former values are put back: so the forward is the same one, also
    for a compiler, which would make another program for another momentum.
    """
    buffers = _statistics(module)
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
    """The `context_fn` with which activation checkpointing of `module` updates BatchNorm once per step, not twice.

    For ``checkpoint(module, x, use_reentrant=False, context_fn=…)`` and ``checkpoint_wrapper(module, context_fn=…)``.
    """
    return lambda: (nullcontext(), frozen_statistics(module))
