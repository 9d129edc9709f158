"""A ring of the last embeddings, in the order in which their samples were seen: the memory of a stream."""

from __future__ import annotations

import torch
from torch import Tensor

from seer_pipe.distributed.collectives import all_gather_rows, rank, world_size
from seer_pipe.objectives.base import take_saved


class Ring:
    """``rows`` [length, ..], the same on every rank, and ``next`` [], where the next one is written; a `Memory`, and
    `Reversible`."""

    echoes = True

    def __init__(self, rows: Tensor) -> None:
        self.rows = rows
        self.next = torch.zeros((), dtype=torch.int64, device=rows.device)
        self._before = self.rows, self.next

    @torch.no_grad()
    def push(self, rows: Tensor) -> None:
        """Write this rank's rows [m, ..], and those of all others, over the oldest, in the order of the global batch:
        alike for any number of ranks. A loss may still go back through the rows before."""
        fresh = all_gather_rows(rows).to(self.rows.dtype)
        places = (self.next + torch.arange(len(fresh), device=fresh.device)) % len(self.rows)
        self._before = self.rows, self.next
        self.rows = self.rows.index_copy(0, places, fresh)
        self.next = (self.next + len(fresh)) % len(self.rows)

    def recall(self, samples: Tensor, fresh: Tensor) -> Tensor:
        return fresh

    def remember(self, fresh: Tensor) -> None:
        self.push(fresh)

    def others(self, samples: Tensor, drawn: Tensor) -> tuple[Tensor, Tensor]:
        return self.rows, self.rows.flatten(1).any(1).expand(len(samples), -1)

    def share(self) -> Tensor:
        return self.rows.tensor_split(world_size())[rank()]

    def state_dict(self) -> dict[str, Tensor]:
        return {"ring": self.rows, "next": self.next}

    def load_state_dict(self, state: dict[str, Tensor], name: str) -> None:
        self.load(state["ring"], state["next"], f"the ring of {name}", "views, head and ring")

    def take_back(self, bad: Tensor) -> None:
        rows, following = self._before
        self.rows, self.next = torch.where(bad, rows, self.rows), torch.where(bad, following, self.next)
        self._before = self.rows, self.next

    def load(self, rows: Tensor, following: Tensor, name: str, same: str) -> None:
        """Take those of a checkpoint. UserError where they are of another shape: of other settings, ``same``."""
        self.rows = self.rows.clone()
        take_saved(self.rows, rows, name, same)
        self.next = following.to(self.next)
        self._before = self.rows, self.next
