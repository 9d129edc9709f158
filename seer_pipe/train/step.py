"""One step of training: what happens between a batch of crops and the moved weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._pytree import tree_flatten, tree_unflatten

from seer_pipe.config import Config, Derived
from seer_pipe.distributed.collectives import local
from seer_pipe.distributed.world import World
from seer_pipe.objectives.base import Moment
from seer_pipe.train import build
from seer_pipe.train.health import Guard
from seer_pipe.train.syncbn import PieceStatistics, frozen_statistics

Metrics = dict[str, Tensor]


class TrainStep:
    """Forward, loss, backward, update of a network that is spread over the processes."""

    def __init__(
        self,
        config: Config,
        derived: Derived,
        spread: build.Spread,
        optimizer: Optimizer,
        world: World,
        guard: Guard,
    ) -> None:
        self._config, self.derived = config, derived
        self._network, self._forward, self._objective = spread.network, spread.forward, spread.objective
        self._optimizer = optimizer
        self._guard = guard
        self.rate_factor = 1.0  # lowered by a rollback
        self.refreshed = 0  # number of the objective's last refresh
        self._device = world.device.type
        self._autocast = build.precision(config.train, world)
        self._engine = spread.engine
        self._layout = spread.layout
        #: float16 loses small gradients: they are scaled up. A step whose gradients overflow moves nothing.
        self.scaler = spread.engine.scaler(self._device, enabled=self._autocast == torch.float16)

    def __call__(self, crops: Sequence[Tensor], moment: Moment, log: bool) -> Mapping[str, float | Tensor]:
        """Train on this rank's ``crops``, each [n, 3, S, S].

        Returns what is to be logged of the step: the learning rate, and with ``log`` the objective's metrics and the
        norm of the whole network's gradient, before it is clipped.
        """
        rate = build.rate_at(self._config.optimizer, self.derived, moment.images) * self.rate_factor
        decay = build.decay_at(self._config.optimizer, self.derived, moment.images)
        for group in self._optimizer.param_groups:
            peak = self.derived.peak_lr * self.rate_factor
            group["lr"] = group["rate"] * (peak if group["constant"] else rate)
            group["weight_decay"] = decay if group["decay"] else 0.0
        self._refresh(moment)
        self._guard.keep()
        self._optimizer.zero_grad()
        self._objective.before_step(moment)
        whole = self._config.train.accumulate == 1
        loss, metrics = (self._backward if whole else self._backward_in_pieces)(crops, moment, log)
        self.scaler.unscale_(self._optimizer)
        self._objective.after_backward(moment)
        # In float16 a gradient past its range is the scaler's to skip.
        clip = self._config.optimizer.clip_norm
        norm = self._guard.check(loss, gradients=not self.scaler.is_enabled(), norm=log or clip is not None)
        if clip is not None and norm is not None:
            clip_gradient(self._network, norm, clip)
        self.scaler.step(self._optimizer)
        self.scaler.update()
        self._objective.after_step(moment)
        self._guard.settle()
        if copies := self._network.copies():
            follow(copies, self._objective.momentum(moment), self._guard.bad)
        return {**metrics, **({"grad_norm": norm} if log and norm is not None else {}), "lr": rate}

    def _refresh(self, moment: Moment) -> None:
        """Where this step is the first at which a multiple of the objective's interval was seen."""
        every = self._objective.refresh_images
        if every is not None and (number := moment.images // every) > self.refreshed:
            self._objective.refresh(number, moment)
            self.refreshed = number

    def _backward(self, crops: Sequence[Tensor], moment: Moment, log: bool) -> tuple[Tensor, Metrics]:
        loss, metrics = self._objective.loss(self._outputs(crops), moment, log)
        self.scaler.scale(loss).backward()
        return loss, metrics

    def _backward_in_pieces(self, crops: Sequence[Tensor], moment: Moment, log: bool) -> tuple[Tensor, Metrics]:
        """The gradient of the whole batch's loss, with the activations of one piece of it in memory at a time.

        The loss sees the outputs of all pieces (see `Objective`). BatchNorm normalises each piece by the piece's
        statistics, over all synchronised ranks. The running ones move once per step, by all pieces (see
        `PieceStatistics`); the first forward leaves them alone. What it costs is that forward.
        """
        pieces = list(zip(*(crop.chunk(self._config.train.accumulate) for crop in crops), strict=True))
        with torch.no_grad(), frozen_statistics(self._forward):
            flat = [tree_flatten(self._outputs(piece)) for piece in pieces]
        images = len(pieces[0][0])
        joined = [_join(parts, images) for parts in zip(*(leaves for leaves, _ in flat), strict=True)]
        moved = [leaf.requires_grad_() for leaf in joined if leaf.is_floating_point()]
        loss, metrics = self._objective.loss(tree_unflatten(joined, flat[0][1]), moment, log)
        found = iter(torch.autograd.grad(self.scaler.scale(loss), moved, allow_unused=True))
        gradients = [next(found) if leaf.is_floating_point() else None for leaf in joined]
        statistics = PieceStatistics(self._forward)
        for number, piece in enumerate(pieces):
            with self._without_reduction() if number + 1 < len(pieces) else nullcontext():
                leaves, _ = tree_flatten(self._outputs(piece))
                wanted = [
                    (leaf, g) for leaf, g in zip(leaves, gradients, strict=True) if g is not None and leaf.requires_grad
                ]
                parts = [
                    g.unflatten(0, (-1, images * len(pieces))).chunk(len(pieces), dim=1)[number].flatten(0, 1)
                    for _, g in wanted
                ]
                torch.autograd.backward([leaf for leaf, _ in wanted], parts)
            statistics.add()
        statistics.settle()
        return loss, metrics

    def _outputs(self, crops: Sequence[Tensor]) -> Any:
        # Autocast would keep a half-precision copy of every weight until its end, so of a sharded network the whole.
        half, cache = self._autocast is not None, not self._engine.sharded
        with torch.autocast(self._device, self._autocast, enabled=half, cache_enabled=cache):
            return self._forward([crop.contiguous(memory_format=self._layout) for crop in crops])

    def _without_reduction(self) -> AbstractContextManager[None]:
        """DDP reduces once, after the last piece. FSDP2 after each, or whole gradients would wait on every rank."""
        no_sync: AbstractContextManager[None] = getattr(self._forward, "no_sync", nullcontext)()
        return no_sync


def _join(parts: Sequence[Tensor], images: int) -> Tensor:
    """Rows of pieces of so many images, each in crop-major order, to those of the batch in crop-major order."""
    return torch.cat([part.unflatten(0, (-1, images)) for part in parts], dim=1).flatten(0, 1)


@torch.no_grad()
def clip_gradient(network: nn.Module, norm: Tensor, longest: float) -> None:
    """Shorten the gradient of the whole network, of this ``norm`` over all ranks, where it is longer than ``longest``.

    The host does not wait. A norm that is not finite spoils the gradient, which is that of a step to be taken back.
    """
    gradients = [local(parameter.grad) for parameter in network.parameters() if parameter.grad is not None]
    torch._foreach_mul_(gradients, (longest / (norm + 1e-6)).clamp_max(1.0))


@torch.no_grad()
def follow(copies: Sequence[tuple[nn.Module, nn.Module]], momentum: float, bad: Tensor) -> None:
    """Move each copy's parameters to ``momentum`` · copy + (1 − momentum) · original, in place; not where ``bad``.

    In place, so that sharded copies see it in their next forward. Buffers of a copy are its own.
    """
    weight = (1.0 - momentum) * (~bad).float()
    for copy, original in copies:
        mine = [local(parameter) for parameter in copy.parameters()]
        way = torch._foreach_sub([local(parameter) for parameter in original.parameters()], mine)
        torch._foreach_mul_(way, weight)
        torch._foreach_add_(mine, way)
