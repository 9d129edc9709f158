"""What objectives that guess a label of the views' geometry have in common: no torch at import."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, ClassVar

from seer_pipe.objectives.settings import Panel, Settings, Sign, uniform_sign

if TYPE_CHECKING:
    from seer_pipe.config import Views


class PretextSettings(Settings):
    shortcut: ClassVar[float]
    """How often nobody guesses right by what is in the picture alone."""
    unlearnt: ClassVar[str]
    """What to try where guesses stay uniform."""
    leak: ClassVar[str]
    """What to try where more is guessed than ``shortcut``."""

    panels: ClassVar[Sequence[Panel]] = (
        Panel("Labels guessed", "How often the label that the views give is guessed; near all: look for a shortcut.",
              {"pretext_accuracy": "guessed"}, percent=True),
    )  # fmt: skip

    @property
    def answers(self) -> int:
        """Labels among which one is guessed."""
        raise NotImplementedError

    def chance_loss(self, views: Views, batch: int) -> float:
        """That of uniform guesses."""
        return math.log(self.answers)

    def signs(self) -> Sequence[Sign]:
        return (
            uniform_sign(math.log(self.answers), self.unlearnt),
            Sign(
                ("pretext_accuracy",),
                lambda values: values["pretext_accuracy"] > self.shortcut,
                "{pretext_accuracy:.1%} of the labels are guessed, where the content of pictures allows less",
                f"there may be a shortcut: {self.leak}",
            ),
        )
