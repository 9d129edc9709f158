"""Rotation's settings. No torch at import."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT
from seer_pipe.objectives.pretext_settings import PretextSettings
from seer_pipe.objectives.settings import Setup

if TYPE_CHECKING:
    from seer_pipe.config import Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network
    from seer_pipe.objectives.rotation.objective import Rotation

TURNS = 4


class RotationSettings(PretextSettings):
    name: Literal["rotation"] = Field(description="RotNet, arXiv 1803.07728")

    layouts = ("quarter_turns",)
    shortcut = 0.98
    """RotNet guesses 94 % on CIFAR-10, 89 % with AlexNet on ImageNet (gidariss/FeatureLearningRotNet, issues 6, 8)."""
    unlearnt = "another optimizer.lr, a longer optimizer.warmup_images, larger crops"
    leak = (
        "look at the crops (seer-pipe show crops) for borders, frames or captions that give the turn away, and cut "
        "square boxes (views.augment.ratio: [1, 1])"
    )

    @property
    def answers(self) -> int:
        return TURNS

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Logits with their softmax and gradient."""
        return FLOAT * TURNS * 3 * views.count * batch // ranks

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from torch import nn

        from seer_pipe.objectives.base import Network

        made = trunk()
        return Network(made, nn.Linear(made.width, TURNS))

    def objective(self, network: Network, setup: Setup) -> Rotation:
        from seer_pipe.objectives.rotation.objective import Rotation

        return Rotation()
