"""One step of training: what happens between a batch of crops and the moved weights."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from seer_pipe.config import Config, Derived
from seer_pipe.objectives.base import Objective
from seer_pipe.train import build
from seer_pipe.train.health import Guard
from seer_pipe.train.parallel import World


class TrainStep:
    """Forward, loss, backward, update. ``forward`` is the network as it is spread over the processes."""

    def __init__(
        self,
        config: Config,
        derived: Derived,
        forward: nn.Module,
        objective: Objective,
        optimizer: Optimizer,
        world: World,
        guard: Guard,
    ) -> None:
        self._config, self._derived = config, derived
        self._forward, self._objective, self._optimizer = forward, objective, optimizer
        self._guard = guard
        self.rate_factor = 1.0  # lowered by a rollback
        self._device = world.device.type
        self._autocast = build.precision(config.train, world)
        self._layout = build.layout(config.train)

    def __call__(self, crops: Sequence[Tensor], images: int, log: bool) -> Mapping[str, float | Tensor]:
        """Train on this rank's ``crops``, each [n, 3, S, S], when ``images`` images were seen before.

        Returns what is to be told of the step: the learning rate, and with ``log`` the objective's metrics.
        """
        rate = build.rate_at(self._config.optimizer, self._derived, images) * self.rate_factor
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        self._guard.keep()
        self._objective.before_step(images)
        with torch.autocast(self._device, self._autocast) if self._autocast else nullcontext():
            outputs = self._forward([crop.contiguous(memory_format=self._layout) for crop in crops])
        loss, metrics = self._objective.loss(outputs, images, log)
        self._optimizer.zero_grad()
        loss.backward()
        self._objective.after_backward(images)
        self._guard.check(loss)
        self._optimizer.step()
        self._objective.after_step(images)
        self._guard.settle()
        return {**metrics, "lr": rate}
