"""CPC's settings, and what follows from them. No torch at import."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from seer_pipe.distributed.traffic import FLOAT, Collectives, gathered
from seer_pipe.objectives.patches_settings import check_grids
from seer_pipe.objectives.settings import Panel, Settings, Setup, Sign, guessing_sign
from seer_pipe.section import Positive

if TYPE_CHECKING:
    from seer_pipe.config import Config, Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network
    from seer_pipe.objectives.cpc.objective import Cpc

LEAK = 0.9  # of the farthest row's patches: as many are not to be told by content


class CpcSettings(Settings):
    """The context sees a row of patches and those above it, and predicts patches in rows below."""

    name: Literal["cpc"] = Field(description="contrastive predictive coding, arXiv 1807.03748")
    offsets: Annotated[list[Positive], Field(min_length=1)] = Field(
        [2, 3, 4, 5, 6], description="rows further down that are predicted, each by a map of its own; those whose "
        "patches overlap are too easy"
    )  # fmt: skip
    dim: Positive = Field(64, description="numbers of a patch that are predicted")
    hidden: Positive = Field(256, description="width of the context network's blocks, within")
    blocks: Positive = Field(
        5, description="of the context network; each looks a row further up, and a column further aside"
    )
    gather: bool = Field(
        True, description="patches are told from those of all ranks' images; false: from those of a rank's own, which "
        "sends nothing, and makes results depend on the number of ranks"
    )  # fmt: skip

    layouts = ("grid",)
    panels: ClassVar[Sequence[Panel]] = (
        Panel("Patches found", "How often the predicted patch is found: less in farther rows, or look for a leak.",
              {"nearest_row": "nearest row", "farthest_row": "farthest row", "pretext_accuracy": "all rows"},
              percent=True),
    )  # fmt: skip

    def check(self, views: Views, batch: int) -> None:
        check_grids(self.name, views, side=None)
        if len(set(self.offsets)) < len(self.offsets):
            raise ValueError("objective.offsets names a row twice")
        if max(self.offsets) >= (side := _side(views)):
            raise ValueError(f"objective.offsets {max(self.offsets)}: a grid of {side} rows has none so far down")

    def chance_loss(self, views: Views, batch: int) -> float | None:
        """The logarithm of all patches of a batch; how many a rank's own are is not known here."""
        return math.log(views.count * batch) if self.gather else None

    def problems(self, config: Config, images: int) -> list[str]:
        apart, found = config.views.crops[0].grid.apart, []
        if min(self.offsets) < apart:
            found.append(f"objective.offsets {min(self.offsets)}: patches in rows so near share pixels, and are found "
                         f"by them; begin with {apart}")  # fmt: skip
        if config.model.norm == "batch":
            found.append("model.norm batch: statistics over the patches of an image show each what the others are, and "
                         "CPC is known to cheat by them; take layer")  # fmt: skip
        return found

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Similarities of this rank's predictions with their softmax and gradient, and the gathered patches."""
        side, own = _side(views), batch // ranks
        predicted = sum((side - offset) * side for offset in self.offsets) * own
        patches = views.count * (batch if self.gather else own)
        return FLOAT * (3 * predicted * patches + 2 * patches * self.dim)

    def collectives(self, views: Views, batch: int, ranks: int) -> list[Collectives]:
        """The patches of all ranks, and their gradient."""
        if not self.gather:
            return []
        size = FLOAT * views.count * batch * self.dim
        return gathered("patches", ranks, size)

    def signs(self) -> Sequence[Sign]:
        return (
            guessing_sign(
                "all patches of the batch",
                "no patch is predicted: try another optimizer.lr, a longer optimizer.warmup_images, larger patches",
            ),
            Sign(
                ("farthest_row",),
                lambda values: values["farthest_row"] > LEAK,
                "{farthest_row:.1%} of the patches are found in the farthest row, where content allows less",
                "there may be a leak: LayerNorm (model.norm: layer), rows that do not overlap (objective.offsets), and "
                "colours that differ from patch to patch (views.augment.jitter_p, grey_p, channel_p)",
            ),
        )

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        from seer_pipe.objectives.cpc.network import CpcHead, CpcNetwork

        made = trunk()
        return CpcNetwork(made, CpcHead(made.width, self.hidden, self.blocks, self.dim, self.offsets))

    def objective(self, network: Network, setup: Setup) -> Cpc:
        from seer_pipe.objectives.cpc.objective import Cpc

        return Cpc(_side(setup.views), self.offsets, self.gather)


def _side(views: Views) -> int:
    return views.crops[0].grid.side
