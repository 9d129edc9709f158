"""PIRL's settings, and what follows from them. No torch at import."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT, Collectives
from seer_pipe.objectives.instance_settings import InstanceSettings
from seer_pipe.objectives.patches_settings import SIDE
from seer_pipe.objectives.settings import Momentum, Setup
from seer_pipe.section import Count, Positive, Probability

if TYPE_CHECKING:
    from seer_pipe.config import Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network
    from seer_pipe.objectives.pirl.objective import Pirl

LOOKING = 2  # the crop, and the patches together


class PirlSettings(InstanceSettings):
    """``views.crops``: one crop, then one shuffled grid of 3 x 3 patches. The bank holds a row for every sample.

    With ``ring``, for streams, there are two crops before the grid: the second is seen by a momentum copy alone, whose
    embedding stands in the place of the image's row.
    """

    name: Literal["pirl"] = Field(description="PIRL, arXiv 1912.01991")
    dim: Positive = Field(128, description="of the embeddings")
    patches_weight: Probability = Field(
        0.5, description="of the patches' loss; that of the crop has the rest. 0 is NPID, which knows no patches"
    )
    ring: Count = Field(
        0, description="last images of a stream that a step is told from, instead of objective.negatives; 0: a bank"
    )
    momentum: Momentum = Momentum(start=0.999, end=0.999, batch=256)

    layouts = ("independent", "shuffled_grid")

    @property
    def numbers(self) -> int:
        return self.dim

    @property
    def knows_its_end(self) -> bool:
        return bool(self.ring) and self.momentum.start != self.momentum.end

    def check(self, views: Views, batch: int) -> None:
        *crops, grid = views.crops
        wanted = 2 if self.ring else 1
        alike = all(crop.layout == "independent" for crop in crops) and sum(crop.count for crop in crops) == wanted
        if not alike or grid.layout != "shuffled_grid" or grid.count != 1 or grid.grid.side != SIDE:
            many = "2 crops" if self.ring else "1 crop"
            raise ValueError(f"objective pirl needs {many}, and then in views.crops a group of layout shuffled_grid "
                             f"with count 1 and grid.side {SIDE}")  # fmt: skip
        if self.ring and self.ring < batch:
            raise ValueError(f"objective.ring {self.ring} is less than the {batch} images of a step")
        if self.ring and self.loss == "nce":
            raise ValueError("objective.loss nce needs a bank, whose size is part of it: take infonce with a ring")

    def looking(self, views: Views) -> int:
        return LOOKING

    def chance_loss(self, views: Views, batch: int) -> float:
        return math.log(self.ring + 1) if self.ring else super().chance_loss(views, batch)

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """With a ring similarities with their softmax and gradient, and the ring before and after its next write."""
        if not self.ring:
            return super().memory(views, batch, ranks)
        return FLOAT * self.ring * (3 * LOOKING * batch // ranks + 2 * self.dim)

    def kept(self, samples: int, ranks: int) -> float:
        return 0.0 if self.ring else super().kept(samples, ranks)

    def collectives(self, views: Views, batch: int, ranks: int) -> list[Collectives]:
        if not self.ring:
            return super().collectives(views, batch, ranks)
        return [
            Collectives("ring", "all_gather", ranks, 1, FLOAT * batch * self.dim),
            Collectives("count", "all_reduce", ranks, 1, FLOAT),
        ]

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from torch import nn

        from seer_pipe.objectives.base import Network
        from seer_pipe.objectives.momentum import MomentumNetwork
        from seer_pipe.objectives.pirl.objective import PirlHead

        made = trunk()
        head = PirlHead(made.width, self.dim)
        if not self.ring:
            return Network(made, head)
        copied = nn.Linear(made.width, self.dim)
        return MomentumNetwork(made, head, trunk(), copied, original=head.crop, targets=[1], unseen=1)

    def objective(self, network: Network, setup: Setup) -> Pirl:
        from seer_pipe.objectives.pirl.objective import Pirl

        return Pirl(self, setup)
