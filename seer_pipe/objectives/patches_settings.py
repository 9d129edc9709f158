"""What objectives over the patches of a grid ask of the views. No torch at import."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from seer_pipe.config import Views

SIDE = 3
PATCHES = SIDE**2


def check_grids(name: str, views: Views, side: int | None = SIDE) -> None:
    """ValueError where the views are not one grid, of so many patches in a row; None: any number."""
    crop, *more = views.crops
    if more or crop.count != 1 or side not in (None, crop.grid.side):
        size, and_side = (f"{side} x {side} patches", f" and grid.side {side}") if side else ("patches", "")
        raise ValueError(
            f"objective {name} needs one grid of {size}: a single group in views.crops with count 1{and_side}"
        )
