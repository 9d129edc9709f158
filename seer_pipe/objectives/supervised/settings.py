"""The settings of supervised training. No torch at import."""

from __future__ import annotations

from typing import ClassVar, Literal

from pydantic import Field

from seer_pipe.objectives.label_settings import LabelSettings


class SupervisedSettings(LabelSettings):
    name: Literal["supervised"] = Field(description="cross entropy of one class an image")

    most: ClassVar[int | None] = 1
