"""What an objective is, and the network that is trained under it."""

from typing import Any

import torch
from torch import Tensor, nn


class Objective:
    """Five things: the views it wants, the head, the loss, what happens around a step, and its state.

    A training step, with `images` the number of images seen before it (so that nothing depends on batch or world
    size), is::

        objective.before_step(images)
        outputs = network(crops)
        loss, metrics = objective.loss(outputs, images)
        loss.backward()
        objective.after_backward(images)
        optimizer.step()
        objective.after_step(images)

    `loss` needs nothing of the network but its outputs. A batch too large for memory is therefore exact in pieces:
    run the pieces without gradient, join their outputs crop by crop, take the gradient of the loss with respect to
    them, run each piece again and hand it its part of that gradient. Codes, negatives and queues then see the
    whole batch.

    Implementations inherit from this class and override what they need.
    """

    crops: int
    """Views: how many crops of every image the loss expects."""
    head: nn.Module
    """Pooled features [crops · n, width] -> outputs, crop-major rows. Saved with the network."""

    def before_step(self, images: int) -> None:
        """Runs before the forward of a step, e.g. to normalise prototypes."""

    def loss(self, outputs: Any, images: int, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this rank's rows, to be averaged over ranks, and metrics.

        Args:
            outputs: what `head` returned for all crops.
            images: images seen before this step.
            log: also compute the metrics: scalar tensors, already means over all ranks. Every rank passes the same
                value, since metrics have collectives. Without it the dictionary is empty.

        Called once a step on every rank; it may update queues and other state.
        """
        raise NotImplementedError

    def after_backward(self, images: int) -> None:
        """Runs between backward and the optimiser, e.g. to freeze parameters by dropping their gradients."""

    def after_step(self, images: int) -> None:
        """Runs after the optimiser, e.g. to move a momentum network."""

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint holds besides the network: logical tensors, equal on all ranks. All ranks call it."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state_dict` gave, whatever the world size was."""


class Network(nn.Module):
    """A trunk and an objective's head over all crops of a batch."""

    def __init__(self, trunk: nn.Module, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk
        self.head = head

    def forward(self, crops: list[Tensor]) -> Any:
        """Crops [n, 3, S, S] of possibly different sizes S -> what the head returns for rows in crop-major order.

        The trunk runs once a resolution (so BatchNorm sees a resolution at a time, and sharded weights are
        gathered that often only), the head once.
        """
        sizes: dict[torch.Size, list[int]] = {}
        for index, crop in enumerate(crops):
            sizes.setdefault(crop.shape[-2:], []).append(index)
        features: dict[int, Tensor] = {}
        for indices in sizes.values():
            pooled = self.trunk(torch.cat([crops[index] for index in indices]))
            features.update(zip(indices, pooled.chunk(len(indices)), strict=True))
        return self.head(torch.cat([features[index] for index in range(len(crops))]))
