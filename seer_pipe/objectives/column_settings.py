"""What losses against redundancy have in common, and what they cost. No torch at import."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT, Collectives, gathered
from seer_pipe.objectives.settings import Head, Settings
from seer_pipe.section import Count

if TYPE_CHECKING:
    from seer_pipe.config import Views

Pairs = list[tuple[int, int]]


def by_rows(crops: int, pairs: int, dim: int, batch: int) -> bool:
    """Whether products of rows (of each crop, batch · batch) cost less than those of columns (each pair, dim · dim)."""
    return crops * batch < pairs * dim


class ColumnSettings(Settings):
    """Of an objective that compares crops by pairs, and looks at second moments of the embeddings' columns."""

    head: Head = Head(hidden=[8192, 8192], dim=8192)
    anchors: list[Count] = Field(
        [0, 1], min_length=1, description="crops that are compared with each of the others, from 0: the large ones"
    )

    def check(self, views: Views, batch: int) -> None:
        self.check_crops(views, "anchors")
        if batch < 2:
            raise ValueError(f"objective {self.name} needs 2 images or more per step, train.batch is {batch}")

    def pairs(self, crops: int) -> Pairs:
        """The pairs of crops that are compared, each once: those with an anchor among them."""
        return sorted({(min(a, v), max(a, v)) for a in self.anchors for v in range(crops) if a != v})

    def moments(self, crops: int) -> Pairs:
        """The pairs of crops whose second moments count."""
        return self.pairs(crops)

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Embeddings, and products of rows or columns, each with its gradient."""
        crops, dim, images = views.count, self.head.dim, batch // ranks
        moments = len(self.moments(crops))
        numbers = 4 * crops * images * dim  # as they are, and less their means
        if by_rows(crops, moments, dim, batch):
            numbers += 2 * crops * batch * (dim + images)
        else:
            numbers += 2 * moments * dim**2
        return FLOAT * numbers

    def collectives(self, views: Views, batch: int, ranks: int) -> list[Collectives]:
        crops, dim = views.count, self.head.dim
        moments = len(self.moments(crops))
        found = [Collectives("means and variances", "all_reduce", ranks, 4, FLOAT * 4 * crops * dim)]
        if not by_rows(crops, moments, dim, batch):
            return [*found, Collectives("second moments", "all_reduce", ranks, moments, FLOAT * moments * dim**2)]
        size = FLOAT * crops * batch * dim
        return [*found, *gathered("embeddings", ranks, size)]
