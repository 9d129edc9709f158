"""What is asked of an objective before there is a network: its settings answer for themselves.

No torch at import, so that help and completion stay fast. Nothing outside of this package names a method: config,
doctor, training, evaluation and report ask through this class alone.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from pydantic import Field

from seer_pipe.distributed.traffic import Collectives
from seer_pipe.section import Count, Positive, Probability, Section

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt
    import torch
    from torch import Tensor, nn

    from seer_pipe.config import Config, Views
    from seer_pipe.models import Trunk
    from seer_pipe.objectives.base import Network, Objective


@dataclass(frozen=True)
class Panel:
    """A chart of the report: metrics of a run with the names that they are drawn under."""

    title: str
    about: str  # what to read off it, in a sentence
    metrics: Mapping[str, str]
    percent: bool = False  # shares of 1
    chance: bool = False  # marks the loss of guessing


@dataclass(frozen=True)
class Sign:
    """A sign in the metrics of a logged step that a run does not learn."""

    metrics: Sequence[str]  # that it reads; where one is missing it says nothing
    seen: Callable[[Mapping[str, float]], bool]
    finding: str  # a sentence with the metrics in braces, as for str.format
    advice: str  # what to try

    def judge(self, values: Mapping[str, float]) -> tuple[bool, str] | None:
        """Whether the metrics are healthy, and the finding; None where they do not say."""
        if any(name not in values for name in self.metrics):
            return None
        return not self.seen(values), self.finding.format(**values)


#: Of every objective that logs `seer_pipe.objectives.metrics.spread` of its embeddings.
EMBEDDING_PANELS = (
    Panel("Effective rank", "Directions that the embeddings fill: near 1 is collapse.", {"effective_rank": "rank"}),
    Panel("Embedding spread", "1 when spread over the sphere, 0 when all are one.", {"embedding_std": "spread"}),
)
EMBEDDING_SIGNS = (
    Sign(
        ("embedding_std", "effective_rank"),
        lambda values: values["embedding_std"] < 0.1 or values["effective_rank"] < 2,
        "the embeddings fill {effective_rank:.1f} directions",
        "embeddings lie in one direction: try a lower optimizer.lr, or a longer optimizer.warmup_images",
    ),
)


def uniform_sign(chance: float, advice: str) -> Sign:
    """Of an objective whose loss is ``chance``, ln K, where predictions among K are uniform."""
    return Sign(
        ("loss",),
        lambda values: abs(values["loss"] - chance) < 0.01 * chance,
        f"the loss is {{loss:.3f}}, and ln K = {chance:.3f} where predictions are uniform",
        f"predictions are uniform: try {advice}",
    )


def guessing_sign(among: str, advice: str) -> Sign:
    """Of an objective whose chance loss, that of guessing ``among`` those of a batch, depends on how many they are."""
    return Sign(
        ("loss", "loss_above_chance"),
        lambda values: abs(values["loss_above_chance"]) < 0.01 * (values["loss"] - values["loss_above_chance"]),
        f"the loss is {{loss:.3f}}, and {{loss_above_chance:+.3f}} from that of guessing among {among}",
        advice,
    )


def collapse_sign(advice: str) -> Sign:
    """Of an objective that nothing but its predictor and BatchNorm keeps from one answer for all images."""
    return Sign(
        ("embedding_std",),
        lambda values: values["embedding_std"] < 0.1,
        "the projections' spread is {embedding_std:.2f}: 1 over the sphere, 0 where all are one",
        "the projections collapse to one: BatchNorm over all ranks (train.sync_bn: true) and in the head "
        f"(objective.head.batch_norm: true), {advice}, or a lower optimizer.lr",
    )


#: Of every objective that logs `seer_pipe.objectives.metrics.retrieval`.
RETRIEVAL_PANELS = (
    Panel("Cosines", "Of a query with its own key, and with others: they must part.",
          {"positive_similarity": "own key", "negative_similarity": "others"}),
    Panel("Own key found", "How often the own key is the nearest.", {"top1": "found"}, percent=True),
)  # fmt: skip
RETRIEVAL_SIGNS = (
    Sign(
        ("positive_similarity", "negative_similarity"),
        lambda values: values["positive_similarity"] - values["negative_similarity"] < 0.05,
        "a query's cosine with its own key is {positive_similarity:.2f}, with others {negative_similarity:.2f}",
        "images are not told apart: try a lower optimizer.lr, a longer optimizer.warmup_images, or a smaller "
        "objective.temperature",
    ),
)
MOMENTUM_PANELS = (Panel("Momentum", "Weight of the old value when the copies follow.", {"momentum": "momentum"}),)


@dataclass(frozen=True)
class Setup:
    """What an objective is built for, besides its network."""

    views: Views
    seed: int  # of the run: what an objective draws comes from it
    samples: int  # in the set or mix of sets: the ids of a moment are below
    device: torch.device
    batch: int  # images of a step, over all ranks
    shards: str = ""  # fingerprint of the set or mix of sets


class Head(Section):
    """A projection on the trunk's features: linear layers with ReLU between them."""

    hidden: list[Positive] = Field(default=[2048], description="widths of the layers in between; [] for a linear head")
    dim: Positive = Field(default=128, description="of the embeddings")
    batch_norm: bool = Field(default=True, description="between the layers; what keeps some objectives from collapse")


class Settings(Section):
    """The settings of one objective, and all that is asked of it without a network.

    Implementations override what differs from an objective that knows no chance loss, needs no memory beside the
    network, sends nothing, and names no clusters.
    """

    name: str

    panels: ClassVar[Sequence[Panel]] = ()
    """What the report draws besides loss, learning rate and throughput."""
    layouts: ClassVar[Collection[str]] = ("independent",)
    """Of views.crops that it takes."""
    hears: ClassVar[bool] = False
    """Whether it takes the sound of a sample beside its crops."""
    follows: ClassVar[bool] = False
    """Whether it takes the patches of several frames of a clip."""

    def check(self, views: Views, batch: int) -> None:
        """ValueError where these settings do not go with the views, or with a global batch of so many images."""

    def check_kinds(self, views: Views) -> None:
        """ValueError where a group of crops has a layout that the objective does not take, or sound is missing or too
        much."""
        if (views.sound is None) == self.hears:
            raise ValueError(f"objective {self.name} {'needs views.sound' if self.hears else 'takes no views.sound'}")
        for crop in views.crops:
            if crop.layout not in self.layouts:
                raise ValueError(f"objective {self.name} needs views.crops of layout {' or '.join(self.layouts)}, and "
                                 f"one is {crop.layout}")  # fmt: skip
            if crop.patched and views.frames is not None and not self.follows:
                raise ValueError(f"objective {self.name} takes patches of one picture, and no views.frames")

    def orders(self, seed: int) -> npt.NDArray[np.uint8] | None:
        """The orders [P, places] that a shuffled grid's patches come in, in a run of this seed; None: any."""
        return None

    def check_crops(self, views: Views, field: str = "") -> None:
        """ValueError where there are no two crops per image, or the setting ``field`` names one that is not there."""
        if views.count < 2:
            raise ValueError(f"objective {self.name} needs 2 crops or more per image, views has {views.count}")
        if field and (last := max(getattr(self, field))) >= views.count:
            raise ValueError(f"objective.{field} names crop {last} of {views.count}")

    def chance_loss(self, views: Views, batch: int) -> float | None:
        """The loss of a network that distinguishes nothing; None where there is no such number."""
        return None

    @property
    def settled_images(self) -> int:
        """Images until which the objective holds something fixed: no sign is judged before."""
        return 0

    @property
    def knows_its_end(self) -> bool:
        """Whether schedules of its own end with the run, so that a run of another length is another one."""
        return False

    def derived(self, batch: int) -> dict[str, float]:
        """Further numbers that follow from the settings and the global batch, shown at the start and kept."""
        return {}

    def fitted(self, batch: int) -> list[str]:
        """Overrides ``objective.key=value`` with which the settings go with a smaller batch than they were made for."""
        return []

    def problems(self, config: Config, images: int) -> list[str]:
        """What looks wrong in the run ``config`` of so many images, one sentence each."""
        return []

    def memory(self, views: Views, batch: int, ranks: int) -> float:
        """Bytes per rank besides the network: of one step on this rank's share of a batch, and of state but `kept`."""
        return 0.0

    def kept(self, samples: int, ranks: int) -> float:
        """Bytes per rank, on its device, of what is kept of each sample of the set."""
        return 0.0

    def kept_on_host(self, samples: int, ranks: int) -> float:
        """The same of the memory of its host."""
        return 0.0

    def collectives(self, views: Views, batch: int, ranks: int) -> list[Collectives]:
        """What the objective sends in a step, counted as torch calls it, in the steady state with nothing logged."""
        return []

    def signs(self) -> Sequence[Sign]:
        """What shows in the metrics that a run does not learn."""
        return ()

    def network(self, trunk: Callable[[], Trunk]) -> Network:
        """The network to train, on the default device; each call of ``trunk`` makes another trunk."""
        raise NotImplementedError

    def objective(self, network: Network, setup: Setup) -> Objective:
        """The objective over a network that this object made."""
        raise NotImplementedError

    @property
    def clusters(self) -> int:
        """Clusters that the head names; 0 where it names none."""
        return 0

    def shares(self, head: nn.Module, features: Tensor) -> Tensor:
        """The share [n, clusters] of each cluster for pooled features [n, width]; rows sum to one."""
        raise NotImplementedError

    def partners(self, head: nn.Module, features: Tensor, sounds: Tensor) -> tuple[Tensor, Tensor]:
        """Unit embeddings [n, D] of pictures, by their pooled features [n, width], and of spectrograms [n, 1, columns,
        bands], to be compared by their cosines; where it ``hears``."""
        raise NotImplementedError

    def sound_trunk(self, head: nn.Module) -> Trunk:
        """The head's own trunk, of spectrograms; where it ``hears``."""
        raise NotImplementedError


class Momentum(Section):
    """Weight of the old value when momentum copies follow: half a cosine over the run, from start to end."""

    start: Probability = Field(
        default=0.996, description="at the start of a run; nearer to 1 is slower and steadier, lower for short runs"
    )
    end: Probability = Field(
        default=1.0, description="at its end; the same as start where the length of a run must stay free"
    )
    batch: Positive = Field(
        default=4096, description="images of the step that both are meant for; the weight is adapted to train.batch"
    )


class TargetSettings(Settings):
    """Of objectives in which crops predict the embeddings of others."""

    targets: list[Count] = Field(
        [0, 1], min_length=1, description="crops that all others predict, from 0: the large ones"
    )

    def check(self, views: Views, batch: int) -> None:
        self.check_crops(views, "targets")
        if len(set(self.targets)) < len(self.targets):
            raise ValueError("objective.targets names a crop twice")


class MomentumSettings(TargetSettings):
    """Of such objectives whose targets come from momentum copies."""

    momentum: Momentum = Momentum()

    @property
    def knows_its_end(self) -> bool:
        return self.momentum.start != self.momentum.end
