"""The settings of weak labels. No torch at import."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from seer_pipe.objectives.label_settings import LabelSettings, LossName


class WeakLabelsSettings(LabelSettings):
    name: Literal["weak_labels"] = Field(description="classes of tags, arXiv 1805.00932")
    loss: LossName = Field(
        "softmax", description="softmax: of an image's k tags each has the target 1/k; sigmoid: each class by itself"
    )

    @property
    def kind(self) -> LossName:
        return self.loss
