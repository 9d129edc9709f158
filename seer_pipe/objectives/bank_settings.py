"""The settings of a memory bank, and what it takes. No torch at import."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT, Collectives
from seer_pipe.section import Probability, Section

#: The rows of a set lie in so many shards, or as many as there are samples. Ranks hold whole ones, so the fullest of W
#: ranks has at most W / SHARDS more than its share.
SHARDS = 4096
ID = 8  # bytes of a sample's id
WIDTHS = {"float16": 2, "float32": 4}


class BankSettings(Section):
    keep: Probability = Field(default=0.5, description="weight of the old row when an image is seen again")
    dtype: Literal["float16", "float32"] = Field(
        default="float32", description="of the rows; float16 for a set whose bank would not fit otherwise"
    )

    def bytes(self, samples: int, numbers: int, ranks: int) -> float:
        """What the fullest of the ranks holds of a row of so many numbers for each sample."""
        shards, rows = layout(samples)
        return float(-(-shards // ranks) * rows * numbers * WIDTHS[self.dtype])

    def collectives(self, numbers: int, batch: int, ranks: int) -> list[Collectives]:
        """Of a step: ids, and the rows of the batch, of so many numbers, from and to those that hold them."""
        of_rank = batch // ranks * numbers
        return [
            Collectives("ids", "all_gather", ranks, 1, ID * batch),
            Collectives("rows read", "all_to_all", ranks, 1, WIDTHS[self.dtype] * of_rank),
            Collectives("rows written", "all_to_all", ranks, 1, FLOAT * of_rank),
        ]


def layout(samples: int) -> tuple[int, int]:
    """Shards, and rows in each. Sample i is row i // shards of shard i % shards: neighbours lie apart."""
    shards = max(1, min(SHARDS, samples))
    return shards, -(-samples // shards)
