"""DINO: every crop predicts what a momentum teacher makes of another (Caron et al. 2021, arXiv 2104.14294, section 3).

Student and teacher score unit embeddings z against K unit vectors w. With s the student's scores of all crops, t the
teacher's of the large ones, and c the centre, which has no gradient, as t has none::

    loss   = mean over a in A of  1/(V-1) sum over v != a of  -sum_k q_a[k] · log softmax_k(s_v / temperature)
    q_a    = softmax((t_a - c) / teacher temperature)
    c      = m · c + (1 - m) · mean of t over crops and images      after the loss (equation 4)

The centre keeps one output from winning everywhere, the low temperature keeps all from being equal.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from seer_pipe.distributed.collectives import all_mean
from seer_pipe.objectives.base import Moment, take_saved
from seer_pipe.objectives.dino.settings import DinoSettings
from seer_pipe.objectives.heads import full_precision, projection, unit
from seer_pipe.objectives.metrics import entropy
from seer_pipe.objectives.momentum import MomentumObjective, MomentumOutput
from seer_pipe.objectives.multicrop import predict_others
from seer_pipe.objectives.settings import Setup


class DinoOutput(NamedTuple):
    """Head outputs in crop-major rows, float32."""

    embeddings: Tensor
    """[V · n, D], unit rows."""
    scores: Tensor
    """[V · n, K], cosines."""


class DinoHead(nn.Module):
    """Projection to unit embeddings and their scores against K vectors, whose lengths do not count.

    Args:
        dims: widths from the trunk's features to the embeddings, e.g. [2048, 2048, 2048, 256].
        outputs: K.
        batch_norm: BatchNorm between the layers of the projection.
    """

    def __init__(self, dims: Sequence[int], outputs: int, batch_norm: bool) -> None:
        super().__init__()
        self.projection = projection(dims, batch_norm, activation=nn.GELU)
        self.last = nn.Linear(dims[-1], outputs, bias=False)

    def forward(self, features: Tensor) -> DinoOutput:
        projected = self.projection(features)
        with full_precision(features):
            embeddings = unit(projected)
            return DinoOutput(embeddings, F.linear(embeddings, F.normalize(self.last.weight, dim=1)))


class Dino(MomentumObjective):
    """DINO with multi-crop. ``head`` is the student's."""

    def __init__(self, head: DinoHead, settings: DinoSettings, setup: Setup) -> None:
        super().__init__(settings.momentum, setup.batch)
        self.head = head
        self.settings = settings
        self.crops = setup.views.count
        self.targets = torch.tensor(settings.targets, device=setup.device)
        self.centre = torch.zeros(settings.outputs, device=setup.device)

    def loss(self, outputs: MomentumOutput, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        embeddings, scores = outputs.online
        with full_precision(scores):
            teacher = outputs.targets.scores.detach()
            targets = F.softmax((teacher - self.centre) / self.settings.teacher_temperature_at(moment.images), dim=1)
            targets = targets.unflatten(0, (len(self.targets), -1))
            scores = scores.unflatten(0, (self.crops, -1))
            loss = predict_others(scores, targets, self.targets, self.settings.temperature)
            self._move_centre(teacher)
            return loss, self._metrics(embeddings, targets, loss, moment) if log else {}

    def after_backward(self, moment: Moment) -> None:
        """Freezes: without a gradient, momentum and weight decay leave the last layer alone as well."""
        if moment.images < self.settings.freeze_images:
            self.head.last.weight.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        return {"centre": self.centre}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        take_saved(self.centre, state["centre"], "DINO's centre", "objective.outputs")

    @torch.no_grad()
    def _move_centre(self, teacher: Tensor) -> None:
        (mean,) = all_mean([teacher.mean(0)])
        self.centre.lerp_(mean.to(self.centre.dtype), 1 - self.settings.centre_momentum)

    @torch.no_grad()
    def _metrics(self, embeddings: Tensor, targets: Tensor, loss: Tensor, moment: Moment) -> dict[str, Tensor]:
        """What tells learning from the two collapses, in nats.

        - `target_entropy` of a sample's target: near ln K the teacher says nothing. The loss exceeds it by what the
          student does not know yet (their Kullback-Leibler divergence).
        - `mean_target_entropy`, of the mean target: near 0 one output wins everywhere.
        - `centre_norm`: length of the centre, 0 to sqrt(K).
        """
        target_entropy, target = entropy(targets).mean(), targets.mean((0, 1))
        metrics = self.logged(loss, embeddings, moment, target_entropy=target_entropy, mean_target_entropy=target)
        return metrics | {
            "mean_target_entropy": entropy(metrics["mean_target_entropy"]),
            "centre_norm": self.centre.norm().float(),
        }
