"""The account of a step's collectives. No torch here: objectives answer for theirs before a network exists."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

FLOAT = 4  # bytes: what travels is float32


@dataclass(frozen=True)
class Collectives:
    """Those of one kind for one purpose, per step. ``bytes``: of whole tensors, as every rank has them at the end."""

    part: str
    kind: Literal["all_gather", "reduce_scatter", "all_reduce", "all_to_all"]
    ranks: int
    calls: int
    bytes: int

    @property
    def sent(self) -> float:
        """Bytes that a rank sends (and receives) in rings: Patarasuk and Yuan 2009, optimal in bandwidth."""
        turns = 2 if self.kind == "all_reduce" else 1
        return turns * self.bytes * (self.ranks - 1) / self.ranks


def gathered(rows: str, ranks: int, size: int) -> list[Collectives]:
    """Of rows that all ranks get of all, ``size`` bytes, and whose gradient goes back (`gradients.gather_crops`)."""
    return [
        Collectives(rows, "all_gather", ranks, 1, size),
        Collectives(f"gradients of {rows}", "reduce_scatter", ranks, 1, size),
    ]
