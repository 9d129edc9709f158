"""What an objective remembers of images: of a set in a bank, a row for each; of a stream in a ring, the last ones."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from seer_pipe.objectives.bank import Bank
from seer_pipe.objectives.bank_settings import BankSettings
from seer_pipe.objectives.ring import Ring
from seer_pipe.objectives.settings import Setup


class Memory(Protocol):
    """Rows [.., D] of images; one of zeros is none. All ranks call each method together: of a step `recall`, then what
    else is asked, then `remember`."""

    echoes: bool
    """Whether what it recalls of an image is the fresh row, for it was not seen before."""

    def recall(self, samples: Tensor, fresh: Tensor) -> Tensor:
        """What this rank's images are known by, [n, ..]: of a bank the rows that earlier visits left; of a ring
        ``fresh`` [n, ..], which a momentum copy made of them now. ``samples``: their ids [n] int64, on the host."""
        ...

    def remember(self, fresh: Tensor) -> None:
        """Write the rows [n, ..] of the images that were recalled."""
        ...

    def others(self, samples: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        """Rows [K, ..] of other images, on all ranks alike, and which of them an image may be told from, [n, K]: of a
        bank those of the ids ``drawn`` [K] that were written and are not the image's; of a ring all there are."""
        ...

    def share(self) -> Tensor:
        """This rank's part of all rows, [m, ..], in an order that no number of ranks changes."""
        ...

    def state_dict(self) -> dict[str, Tensor]:
        """For a checkpoint, as of an objective."""
        ...

    def load_state_dict(self, state: dict[str, Tensor], name: str) -> None:
        """Of the objective ``name``. UserError where the rows are of other shapes."""
        ...


def memory_of(ring: int, bank: BankSettings, shape: tuple[int, ...], setup: Setup) -> Memory:
    """A ring of so many rows [.., D], or with 0 a bank."""
    if ring:
        return Ring(torch.zeros(ring, *shape, device=setup.device))
    return Bank(bank, setup.samples, shape, setup.device)
