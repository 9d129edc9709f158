"""What objectives over pictures with their sounds have in common. No torch at import."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, ClassVar, Literal

from pydantic import Field

from seer_pipe.errors import UserError
from seer_pipe.objectives.instance_settings import InstanceSettings
from seer_pipe.objectives.settings import Head, Panel, Settings
from seer_pipe.section import Positive

if TYPE_CHECKING:
    from torch import Tensor, nn

    from seer_pipe.config import Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network
    from seer_pipe.objectives.pairs import PairHead


CONSENSUS_PANEL = Panel(
    "Consensus", "Of samples with their positives, as they were found last: the lesser cosine of picture and sound.",
    {"consensus": "positives"},
)  # fmt: skip


class PairSettings(Settings):
    """Each picture has two heads of one shape above its two trunks; ``views.sound`` says what is heard."""

    sound_model: str = Field(
        "conv2d_10", description="of the spectrograms: any trunk by its name, which then has one channel of input"
    )
    head: Head = Head(hidden=[512, 512], dim=128, batch_norm=False)

    hears: ClassVar[bool] = True

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from seer_pipe.objectives.pairs import PairNetwork

        return PairNetwork(*self.parts(trunk))

    def parts(self, trunk: Callable[[], Trunk]) -> tuple[Trunk, PairHead]:
        """A trunk of pictures, and what goes with it."""
        from seer_pipe.models import build_trunk
        from seer_pipe.objectives.heads import projection
        from seer_pipe.objectives.pairs import PairHead

        seeing, hearing = trunk(), build_trunk(self.sound_model, channels=1)
        if hearing.takes_clips:
            raise UserError(f"objective.sound_model: {self.sound_model} takes clips; a spectrogram is an image")
        projections = [
            projection([made.width, *self.head.hidden, self.head.dim], self.head.batch_norm)
            for made in (seeing, hearing)
        ]
        return seeing, PairHead(projections[0], hearing, projections[1])

    def partners(self, head: nn.Module, features: Tensor, sounds: Tensor) -> tuple[Tensor, Tensor]:
        from seer_pipe.objectives.heads import unit

        return unit(head.project(features)), unit(head.heard(sounds))  # type: ignore[operator]  # of a PairHead

    def sound_trunk(self, head: nn.Module) -> Trunk:
        trunk: Trunk = head.sound_trunk  # type: ignore[assignment]
        return trunk


class PairBankSettings(PairSettings, InstanceSettings):
    """Of objectives whose bank holds two rows for each sample of the set, of its picture and of its sound."""

    loss: Literal["infonce", "nce"] = Field(
        "nce", description="nce: each row against noise, as published; infonce: one row among the negatives"
    )
    negatives: Positive = Field(
        1024, description="other samples that a step is told from, over all ranks, the same for pictures and sounds"
    )

    rows: ClassVar[int] = 2

    @property
    def numbers(self) -> int:
        return self.head.dim

    def looking(self, views: Views) -> int:
        return views.count + 1
