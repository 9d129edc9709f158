"""DINO's settings, and what follows from them. No torch at import."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT, Collectives
from seer_pipe.objectives.settings import (
    EMBEDDING_PANELS,
    EMBEDDING_SIGNS,
    MOMENTUM_PANELS,
    Head,
    Momentum,
    MomentumSettings,
    Panel,
    Setup,
    Sign,
    uniform_sign,
)
from seer_pipe.section import Count, Probability

if TYPE_CHECKING:
    from seer_pipe.config import Config, Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network
    from seer_pipe.objectives.dino.objective import Dino

UNSTABLE_ABOVE = 0.07
"""Teacher temperatures above it were found unstable by the authors (help of ``--teacher_temp``)."""
Temperature = Annotated[float, Field(gt=0)]


class DinoSettings(MomentumSettings):
    name: Literal["dino"] = Field(description="DINO, arXiv 2104.14294")
    head: Head = Head(hidden=[2048, 2048], dim=256, batch_norm=False)
    outputs: Annotated[int, Field(ge=2)] = Field(
        65536, description="K, what teacher and student choose among; fewer for small sets"
    )
    temperature: Temperature = Field(0.1, description="of the student")
    teacher_temperature: Temperature = Field(
        0.04, description="of the teacher after its warm-up; above 0.07 training was found to be unstable"
    )
    teacher_warmup_temperature: Temperature = Field(
        0.04, description="of the teacher at the start; lower where predictions stay uniform"
    )
    teacher_warmup_images: Count = Field(0, description="until which it moves to teacher_temperature")
    centre_momentum: Probability = Field(
        0.9, description="weight of the centre before a step; smaller where one output wins everywhere"
    )
    momentum: Momentum = Momentum(batch=1024)
    freeze_images: Count = Field(
        0, description="the last layer does not move before so many images; an epoch where the loss does not fall"
    )

    panels: ClassVar[Sequence[Panel]] = (
        Panel("Entropies", "Targets near chance say nothing; a low mean target has one output win everywhere.",
              {"target_entropy": "of a target", "mean_target_entropy": "of the mean target"}, chance=True),
        Panel("Centre", "Length of the teacher's mean output: it settles.", {"centre_norm": "length"}),
        *EMBEDDING_PANELS,
        *MOMENTUM_PANELS,
    )  # fmt: skip

    def chance_loss(self, views: Views, batch: int) -> float:
        """ln K, that of uniform predictions."""
        return math.log(self.outputs)

    @property
    def settled_images(self) -> int:
        return self.freeze_images

    def teacher_temperature_at(self, images: int) -> float:
        """A line over the warm-up, then constant."""
        if images >= self.teacher_warmup_images:
            return self.teacher_temperature
        way = images / self.teacher_warmup_images
        return self.teacher_warmup_temperature + way * (self.teacher_temperature - self.teacher_warmup_temperature)

    def derived(self, batch: int) -> dict[str, float]:
        return {
            "freeze_steps": math.ceil(self.freeze_images / batch),
            "teacher_warmup_steps": math.ceil(self.teacher_warmup_images / batch),
            "first_momentum": self.momentum.start ** (batch / self.momentum.batch),
        }

    def problems(self, config: Config, images: int) -> list[str]:
        found = []
        if self.freeze_images >= images:
            found.append("objective.freeze_images: the last layer never moves in this run")
        if self.teacher_warmup_images >= images:
            found.append("objective.teacher_warmup_images: the teacher's temperature warms up to the end of this run")
        if self.teacher_temperature > UNSTABLE_ABOVE:
            found.append(f"objective.teacher_temperature {self.teacher_temperature:g}: above {UNSTABLE_ABOVE:g} "
                         "training was found to be unstable")  # fmt: skip
        return found

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Scores with their softmax and gradient, the teacher's with their softmax, and the centre."""
        of_image = 3 * views.count + 2 * len(self.targets)
        return FLOAT * self.outputs * (of_image * batch // ranks + 1)

    def collectives(self, views: Views, batch: int, ranks: int) -> list[Collectives]:
        return [Collectives("centre", "all_reduce", ranks, 1, FLOAT * self.outputs)]

    def signs(self) -> Sequence[Sign]:
        """What to try is what users and authors found to help (facebookresearch/dino, issues 43, 61, 246, 273)."""
        chance = math.log(self.outputs)
        return (
            uniform_sign(
                chance,
                "a smaller objective.teacher_warmup_temperature, a longer objective.freeze_images, fewer "
                "objective.outputs, a lower optimizer.lr",
            ),
            Sign(
                ("mean_target_entropy",),
                lambda values: values["mean_target_entropy"] < 0.1,
                f"the entropy of the mean target is {{mean_target_entropy:.2f}} of at most {chance:.2f}",
                "one output wins everywhere: try a smaller objective.centre_momentum, objective.momentum.start "
                "nearer to 1, a lower optimizer.lr",
            ),
            *EMBEDDING_SIGNS,
        )

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from seer_pipe.objectives.dino.objective import DinoHead
        from seer_pipe.objectives.momentum import MomentumNetwork

        student, teacher = trunk(), trunk()
        dims = [student.width, *self.head.hidden, self.head.dim]
        heads = [DinoHead(dims, self.outputs, self.head.batch_norm) for _ in range(2)]
        return MomentumNetwork(student, heads[0], teacher, heads[1], original=heads[0], targets=self.targets)

    def objective(self, network: Network, setup: Setup) -> Dino:
        from seer_pipe.objectives.dino.objective import Dino, DinoHead

        assert isinstance(network.head, DinoHead)
        return Dino(network.head, self, setup)
