"""Relative patch location's settings. No torch at import."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT
from seer_pipe.objectives.patches_settings import PATCHES, check_grids
from seer_pipe.objectives.pretext_settings import PretextSettings
from seer_pipe.objectives.settings import Setup
from seer_pipe.section import Positive

if TYPE_CHECKING:
    from seer_pipe.config import Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network
    from seer_pipe.objectives.relative_patch.objective import RelativePatch

DIRECTIONS = PATCHES - 1


class RelativePatchSettings(PretextSettings):
    name: Literal["relative_patch"] = Field(description="relative patch location, arXiv 1505.05192")
    hidden: Positive = Field(4096, description="width of the layer that looks at both patches of a pair")

    layouts = ("grid",)
    shortcut = 0.8
    """By content 30 to 45 % are usual: many patches could stand anywhere."""
    unlearnt = "another optimizer.lr, a longer optimizer.warmup_images"
    leak = (
        "leave wider gaps (a smaller views.crops[].grid.patch, grid.jitter: 1), and break colours that fringe "
        "(views.augment.channel_p or grey_p)"
    )

    @property
    def answers(self) -> int:
        return DIRECTIONS

    def check(self, views: Views, batch: int) -> None:
        check_grids(self.name, views)

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Of each pair what is between the layers, with its gradient, and logits with their softmax and gradient."""
        return FLOAT * DIRECTIONS * (4 * self.hidden + 3 * DIRECTIONS) * batch // ranks

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from seer_pipe.objectives.patches import PatchNetwork
        from seer_pipe.objectives.relative_patch.objective import PairHead

        made = trunk()
        return PatchNetwork(made, PairHead(made.width, self.hidden))

    def objective(self, network: Network, setup: Setup) -> RelativePatch:
        from seer_pipe.objectives.relative_patch.objective import RelativePatch

        return RelativePatch()
