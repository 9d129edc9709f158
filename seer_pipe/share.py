"""One share of some work that several processes do with nothing in common but the store."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

from seer_pipe.errors import UserError

T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """Share ``number``, from 0, of ``of`` equal ones; by default all of the work."""

    number: int = 0
    of: int = 1

    @classmethod
    def parse(cls, text: str) -> Share:
        """``I/N`` as it is written on a command line; all of the work where it is empty."""
        if not text:
            return cls()
        found = re.fullmatch(r"(\d+)/(\d+)", text)
        if found is None or int(found[1]) >= int(found[2]):
            raise UserError(f"--share {text}: write I/N; the shares of 10 are 0/10 to 9/10")
        return cls(int(found[1]), int(found[2]))

    def __str__(self) -> str:
        return f"{self.number}/{self.of}"

    def part(self, things: Sequence[T]) -> Sequence[T]:
        """What belongs to this share; over all shares, each of ``things`` exactly once."""
        return things[self.number :: self.of]

    def overlaps(self, other: Share) -> bool:
        """Whether anything can belong to both: some number is ``number`` modulo ``of`` for either."""
        return (self.number - other.number) % math.gcd(self.of, other.of) == 0


ALL = Share()  # of the work
