"""Batches of eight as a loader makes them, of one rank or several."""

from collections.abc import Sequence
from typing import Any

from seer_pipe.data.loader import Batch, Loader
from seer_pipe.data.order import Plan, slots_of
from seer_pipe.data.views import CropSpec
from seer_pipe.shards import ShardSet


def batches(
    shards: ShardSet,
    first: int,
    last: int,
    rank: int = 0,
    world: int = 1,
    *,
    crops: Sequence[CropSpec],
    **options: Any,
) -> list[Batch]:
    """Those of the steps from ``first`` on, before ``last``; ``options`` are the loader's."""
    plan = Plan(shards.counts, 8, seed=3)
    loader = Loader(shards, plan, slots_of(rank, world, 8), crops, seed=3, **options)
    try:
        return list(loader.batches(first, last))
    finally:
        loader.close()
