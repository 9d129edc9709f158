"""Barlow Twins' settings, and what follows from them. No torch at import."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT, Collectives
from seer_pipe.objectives.column_settings import ColumnSettings
from seer_pipe.objectives.settings import EMBEDDING_PANELS, EMBEDDING_SIGNS, Panel, Setup, Sign
from seer_pipe.section import Rate

if TYPE_CHECKING:
    from seer_pipe.config import Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network, Objective


class BarlowTwinsSettings(ColumnSettings):
    name: Literal["barlow_twins"] = Field(description="Barlow Twins, arXiv 2103.03230")
    off_diagonal: Rate = Field(
        0.0051,
        description="weight of what correlates different dimensions (lambda); larger where they repeat one another",
    )
    norm_rate: Rate = Field(
        1.0, description="multiplies the learning rate of biases and of BatchNorm; far below 1 where lars excludes them"
    )

    panels: ClassVar[Sequence[Panel]] = (
        Panel("Correlation of crops", "A dimension goes with itself, towards 1, and with no other, towards 0.",
              {"on_diagonal": "with itself", "off_diagonal": "with others, root mean square"}),
        *EMBEDDING_PANELS,
    )  # fmt: skip

    def chance_loss(self, views: Views, batch: int) -> float:
        """D: no dimension correlates with itself in another crop."""
        return float(self.head.dim)

    def collectives(self, views: Views, batch: int, ranks: int) -> list[Collectives]:
        pairs = len(self.pairs(views.count))
        diagonals = Collectives("diagonals", "all_reduce", ranks, 1, FLOAT * pairs * self.head.dim)
        return [*super().collectives(views, batch, ranks), diagonals]

    def signs(self) -> Sequence[Sign]:
        return (
            Sign(
                ("on_diagonal",),
                lambda values: values["on_diagonal"] < 0.05,
                "crops of one image correlate by {on_diagonal:.2f}",
                "crops have nothing in common: try a lower optimizer.lr, a longer optimizer.warmup_images, a smaller "
                "objective.off_diagonal",
            ),
            Sign(
                ("on_diagonal", "off_diagonal"),
                lambda values: values["off_diagonal"] > 0.5,
                "different dimensions correlate by {off_diagonal:.2f}, and each with itself by {on_diagonal:.2f}",
                "dimensions repeat one another: try a larger objective.off_diagonal, a lower optimizer.lr",
            ),
            *EMBEDDING_SIGNS,
        )

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from seer_pipe.objectives.base import Group, Network
        from seer_pipe.objectives.heads import projection

        made = trunk()
        dims = [made.width, *self.head.hidden, self.head.dim]
        network = Network(made, projection(dims, self.head.batch_norm, bias=False, last_bias=False))
        if self.norm_rate != 1:
            vectors = [name for name, parameter in network.named_parameters() if parameter.ndim == 1]
            network.groups = dict.fromkeys(vectors, Group(rate=self.norm_rate))
        return network

    def objective(self, network: Network, setup: Setup) -> Objective:
        from seer_pipe.objectives.barlow_twins.objective import BarlowTwins

        return BarlowTwins(setup.views.count, self.pairs(setup.views.count), self.off_diagonal)
