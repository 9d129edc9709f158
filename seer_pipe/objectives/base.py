"""What an objective is in training, and the network that is trained under it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from seer_pipe.errors import UserError
from seer_pipe.models import Trunk


def _no_rows() -> Tensor:
    return torch.empty(0, dtype=torch.int64)


@dataclass(frozen=True)
class Moment:
    """Where a step stands. Time is counted in images, so nothing depends on batch or world size."""

    images: int
    """Seen before this step."""
    total: int
    """That the run will have seen at its end."""
    samples: Tensor = field(default_factory=_no_rows)
    """Ids [n] of this rank's images, int64, on the host: the number of each sample in its set; the same image has the
    same id."""
    epochs: Tensor = field(default_factory=_no_rows)
    """How often each of them was seen before, [n] int64."""
    labels: Tensor | None = None
    """What the geometry of the views knows of each row, [crops, n] int64; None where crops are independent."""

    @property
    def progress(self) -> float:
        """Share of the run that is behind, 0 to 1."""
        return min(1.0, self.images / self.total)


@runtime_checkable
class Reversible(Protocol):
    """State too large to be copied every step: it takes back its own last change."""

    def take_back(self, bad: Tensor) -> None:
        """Undo what was written since the last call where ``bad``, a bool scalar on the device, is set."""


class Objective:
    """The loss, what happens around a step, and the state. A training step is::

        objective.before_step(moment)
        outputs = network(crops)
        loss, metrics = objective.loss(outputs, moment)
        loss.backward()
        objective.after_backward(moment)
        optimizer.step()
        objective.after_step(moment)

    `loss` needs nothing of the network but its outputs. A batch too large for memory is therefore exact in pieces:
    run the pieces without gradient, join their outputs crop by crop, take the gradient of the loss with respect to
    them, run each piece again and hand it its part of that gradient. Codes, negatives and queues then see the
    whole batch.

    State is what stands in tensors among the attributes (also inside lists and dictionaries): a step that is taken back
    takes all of it back, whatever was written into it. Implementations override what they need.
    """

    refresh_images: int | None = None
    """`refresh` is called whenever so many images more were seen."""

    def before_step(self, moment: Moment) -> None:
        """Runs before the forward of a step, e.g. to normalise prototypes."""

    def loss(self, outputs: Any, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        """The loss of this rank's rows, to be averaged over ranks, and metrics.

        Args:
            outputs: what the network returned for all crops; tensors without gradient may be among them.
            moment: where the step stands.
            log: also compute the metrics: scalar tensors, already means over all ranks, among them ``loss``. Every rank
                passes the same value, since metrics have collectives. Without it the dictionary is empty.

        Called once per step on every rank; it may update queues and other state.
        """
        raise NotImplementedError

    def after_backward(self, moment: Moment) -> None:
        """Runs between backward and the optimiser, e.g. to freeze parameters by dropping their gradients."""

    def after_step(self, moment: Moment) -> None:
        """Runs after the optimiser."""

    def momentum(self, moment: Moment) -> float:
        """Weight of the old value when the network's momentum copies follow their originals after a step."""
        raise NotImplementedError

    def refresh(self, number: int, moment: Moment) -> None:
        """Runs before the step at which ``number`` · `refresh_images` images were seen, number 1, 2, …; on all ranks.

        What it draws comes from (seed of the run, ``number``) alone, so that a resumed run refreshes alike.
        """

    def state_dict(self) -> dict[str, Tensor]:
        """What a checkpoint holds besides the network, on all ranks: logical tensors, equal everywhere or DTensors."""
        return {}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Takes back what `state_dict` gave, whatever the world size was. DTensors come loaded in place."""

    def tensors(self) -> list[Tensor]:
        """All state that lives in tensors here."""
        leaves = tree_leaves(vars(self))
        return [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, nn.Parameter)]

    def reversibles(self) -> list[Reversible]:
        """All state that takes itself back."""
        return [leaf for leaf in tree_leaves(vars(self)) if isinstance(leaf, Reversible)]


def take_saved(own: Tensor, saved: Tensor, what: str, same: str) -> None:
    """Copy state of a checkpoint, ``what`` in words, into ``own``. UserError where its shape is another; ``same``: the
    settings that it follows from."""
    if saved.shape != own.shape:
        raise UserError(f"checkpoint: {what} is {list(saved.shape)}, this run's {list(own.shape)}: resume with the "
                        f"{same} that it was saved with")  # fmt: skip
    own.copy_(saved)


@dataclass(frozen=True)
class Group:
    """How some parameters are optimised other than the rest."""

    rate: float = 1.0
    """Multiplies the learning rate."""
    constant: bool = False
    """The learning rate is the peak throughout, without warm-up or decay (SimSiam's predictor)."""
    decay: bool = True
    """Weight decay, and the rate that LARC or LARS adapts."""


class Network(nn.Module):
    """A trunk and an objective's head over all crops of a batch."""

    groups: Mapping[str, Group] = {}
    """By name of a module or parameter, as ``head.predict``: what is optimised other than the rest."""

    def __init__(self, trunk: Trunk, head: nn.Module) -> None:
        super().__init__()
        self.trunk = trunk  # the one that is evaluated and exported
        self.head = head

    def forward(self, crops: list[Tensor]) -> Any:
        """Crops [n, 3, S, S] of possibly different sizes S -> what the head returns for rows in crop-major order."""
        return self.head(pooled(self.trunk, crops))

    def features(self, images: Tensor) -> Tensor:
        """Pooled features [n, width] of images [n, 3, S, S] by the trained trunk alone, sharded as it may be."""
        features: Tensor = self.trunk(images)
        return features

    def copies(self) -> list[tuple[nn.Module, nn.Module]]:
        """Momentum copies with their originals. They begin equal, have no gradient, and follow after each step."""
        return []

    def units(self) -> list[nn.Module]:
        """What is sharded and compiled each on its own: the blocks of all trunks."""
        trunks = [module for module in self.modules() if isinstance(module, Trunk)]
        return [block for trunk in trunks for block in trunk.blocks()]


def pooled(trunk: nn.Module, crops: list[Tensor]) -> Tensor:
    """Features [crops · n, width] of crops [n, 3, S, S] of possibly different sizes S, in crop-major order.

    The trunk runs once per resolution (so BatchNorm sees one resolution at a time, and sharded weights are gathered
    only that often).
    """
    sizes: dict[torch.Size, list[int]] = {}
    for index, crop in enumerate(crops):
        sizes.setdefault(crop.shape[-2:], []).append(index)
    features: dict[int, Tensor] = {}
    for indices in sizes.values():
        rows = trunk(torch.cat([crops[index] for index in indices]))
        features.update(zip(indices, rows.chunk(len(indices)), strict=True))
    return torch.cat([features[index] for index in range(len(crops))])
