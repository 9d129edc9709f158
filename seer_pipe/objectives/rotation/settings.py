"""Rotation's settings. No torch at import."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT
from seer_pipe.objectives.pretext_settings import PRETEXT_PANELS, shortcut_sign
from seer_pipe.objectives.settings import Panel, Settings, Setup, Sign, uniform_sign

if TYPE_CHECKING:
    from seer_pipe.config import Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network
    from seer_pipe.objectives.rotation.objective import Rotation

TURNS = 4
SHORTCUT = 0.98
"""RotNet guesses 94 % on CIFAR-10 and 89 % with AlexNet on ImageNet (gidariss/FeatureLearningRotNet, issues 6, 8)."""


class RotationSettings(Settings):
    name: Literal["rotation"] = Field(description="RotNet, arXiv 1803.07728")

    panels: ClassVar[Sequence[Panel]] = PRETEXT_PANELS
    layouts = ("quarter_turns",)

    def chance_loss(self, views: Views, batch: int) -> float:
        """ln 4, that of uniform guesses."""
        return math.log(TURNS)

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Logits with their softmax and gradient."""
        return FLOAT * TURNS * 3 * views.count * batch // ranks

    def signs(self) -> Sequence[Sign]:
        return (
            uniform_sign(math.log(TURNS), "another optimizer.lr, a longer optimizer.warmup_images, larger crops"),
            shortcut_sign(
                SHORTCUT,
                "look at the crops (seer-pipe show crops) for borders, frames or captions that give the turn away, and "
                "cut square boxes (views.augment.ratio: [1, 1])",
            ),
        )

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from torch import nn

        from seer_pipe.objectives.base import Network

        made = trunk()
        return Network(made, nn.Linear(made.width, TURNS))

    def objective(self, network: Network, setup: Setup) -> Rotation:
        from seer_pipe.objectives.rotation.objective import Rotation

        return Rotation()
