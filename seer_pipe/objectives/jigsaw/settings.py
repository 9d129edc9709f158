"""Jigsaw's settings, and what follows from them. No torch at import."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT
from seer_pipe.objectives.patches_settings import PATCHES, check_grids
from seer_pipe.objectives.pretext_settings import PretextSettings
from seer_pipe.objectives.settings import Setup
from seer_pipe.section import Positive

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    from seer_pipe.config import Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network
    from seer_pipe.objectives.jigsaw.objective import Jigsaw


class JigsawSettings(PretextSettings):
    """Which orders there are follows from their number and the run's seed. Checkpoints hold them."""

    name: Literal["jigsaw"] = Field(description="jigsaw puzzles, arXiv 1603.09246")
    permutations: Annotated[int, Field(ge=2, le=10_000)] = Field(
        1000, description="orders of the patches that are told apart; fewer are easier, and further from each other"
    )
    patch_dim: Positive = Field(1000, description="numbers that each patch is summarised in before all are looked at")

    layouts = ("shuffled_grid",)
    shortcut = 0.9
    """AlexNet solves 71 % of the puzzles with BatchNorm, fewer without (bbrattoli/JigsawPuzzlePytorch, issue 7)."""
    unlearnt = "fewer objective.permutations, another optimizer.lr, a longer optimizer.warmup_images"
    leak = (
        "leave wider gaps (a smaller views.crops[].grid.patch, grid.jitter: 1), break colours that fringe "
        "(views.augment.channel_p or grey_p), or take more objective.permutations"
    )

    @property
    def answers(self) -> int:
        return self.permutations

    def check(self, views: Views, batch: int) -> None:
        check_grids(self.name, views)

    def orders(self, seed: int) -> npt.NDArray[np.uint8]:
        from seer_pipe.objectives.jigsaw.permutations import far_apart

        return far_apart(self.permutations, seed, PATCHES)

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Logits with their softmax and gradient, and which order an image's is, place by place."""
        return self.permutations * (3 * FLOAT + PATCHES) * batch // ranks

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from seer_pipe.objectives.jigsaw.objective import JigsawHead
        from seer_pipe.objectives.patches import PatchNetwork

        made = trunk()
        return PatchNetwork(made, JigsawHead(made.width, self.patch_dim, self.permutations))

    def objective(self, network: Network, setup: Setup) -> Jigsaw:
        from seer_pipe.objectives.jigsaw.objective import Jigsaw

        return Jigsaw(self.orders(setup.seed), setup)
