"""What objectives over the nine patches of a grid ask of the views. No torch at import."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seer_pipe.config import Views

SIDE = 3
PATCHES = SIDE**2


def check_grids(name: str, views: Views) -> None:
    """ValueError where the views are not one grid of 3 x 3 patches."""
    crop, *more = views.crops
    if more or crop.count != 1 or crop.grid.side != SIDE:
        raise ValueError(f"objective {name} needs one grid of {SIDE} x {SIDE} patches: a single group in views.crops "
                         f"with count 1 and grid.side {SIDE}")  # fmt: skip
