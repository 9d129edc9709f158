"""SwAV: every crop of an image predicts the prototype assignment of another (Caron et al. 2020, arXiv 2006.09882).

For unit embeddings z and unit prototypes C the scores are s = C z. The code q_a of an assignment crop a comes from
Sinkhorn over the scores of the global batch (and queue), without gradient; every other crop v predicts it::

    loss = mean over a in A of  1/(V-1) sum over v != a of  -sum_k q_a[k] · log softmax_k(s_v / temperature)
"""

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from seer_pipe.distributed.collectives import all_gather_rows, all_max_, all_mean, rank, world_size
from seer_pipe.distributed.parts import change_rows, whole, whole_shape
from seer_pipe.errors import UserError
from seer_pipe.objectives.base import Moment, Objective, take_saved
from seer_pipe.objectives.heads import full_precision, projection
from seer_pipe.objectives.metrics import entropy, moments, spread
from seer_pipe.objectives.multicrop import predict_others
from seer_pipe.objectives.swav.sinkhorn import sinkhorn


class SwavOutput(NamedTuple):
    """Head outputs in crop-major rows, float32."""

    embeddings: Tensor
    """[V · n, D], unit rows."""
    scores: Tensor
    """[V · n, K], cosines."""


class SwavHead(nn.Module):
    """Projection to unit embeddings and their scores against K prototypes.

    Args:
        dims: widths from the trunk's features to the embeddings, e.g. [2048, 2048, 128].
        prototypes: K.
        batch_norm: BatchNorm between the layers of the projection (SwAV yes, SEER no).
    """

    def __init__(self, dims: Sequence[int], prototypes: int, batch_norm: bool) -> None:
        super().__init__()
        self.projection = projection(dims, batch_norm)
        self.prototypes = nn.Linear(dims[-1], prototypes, bias=False)

    def forward(self, features: Tensor) -> SwavOutput:
        projected = self.projection(features)
        with full_precision(features):  # SwAV does not converge with coarse scores
            embeddings = F.normalize(projected.to(torch.promote_types(projected.dtype, torch.float32)), dim=1)
            return SwavOutput(embeddings, self.prototypes(embeddings))


class Swav(Objective):
    """SwAV with multi-crop and queue.

    Args:
        head: its prototypes are kept at unit norm here.
        crops: V, crops of an image.
        assignment: which crops give codes (the large ones).
        temperature: of the predictions.
        eps, iterations: of Sinkhorn.
        freeze_images: until so many images were seen the prototypes do not move (SwAV: about 1.28 million).
        queue_length: embeddings of earlier steps that join the assignment, per assignment crop, over all ranks.
        queue_start: the queue begins to fill when so many images were seen, and is used once the images since then
            fill it. Rows that are missing then, for a step was taken back, take no part.
        group: the ranks that share a global batch; None is all of them.
        device: where the queue lives, the one that trains.
    """

    head: SwavHead

    def __init__(
        self,
        head: SwavHead,
        *,
        crops: int,
        assignment: Sequence[int] = (0, 1),
        temperature: float = 0.1,
        eps: float = 0.05,
        iterations: int = 3,
        freeze_images: int = 0,
        queue_length: int = 0,
        queue_start: int = 0,
        group: dist.ProcessGroup | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if not assignment or not all(0 <= crop < crops for crop in assignment) or crops < 2:
            raise UserError(f"SwAV needs 2 crops or more and assignment crops among them: got {crops}, {assignment}")
        self.head = head
        self.crops = crops
        self.assignment = torch.tensor(assignment, device=device)  # indexing by a list would make the host wait
        self.temperature = temperature
        self.eps = eps
        self.iterations = iterations
        self.freeze_images = freeze_images
        self.queue_start = queue_start
        self.group = group
        prototypes, dim = whole_shape(head.prototypes.weight)
        self.queue = torch.zeros(len(assignment), queue_length, dim, device=device)
        self.last_nearest = torch.full((prototypes,), -1, device=device)

    @torch.no_grad()
    def before_step(self, moment: Moment) -> None:
        """Normalises the prototypes. FSDP2 shards them by rows, so this needs no communication."""
        change_rows(self.head.prototypes.weight, lambda rows: F.normalize(rows, dim=1))

    def loss(self, outputs: SwavOutput, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        with full_precision(outputs.scores):
            codes = self.codes(outputs, moment.images)
            loss = predict_others(self._by_crop(outputs.scores), codes, self.assignment, self.temperature)
            self._note_nearest(outputs.scores, moment.images)
            return loss, self._metrics(outputs, codes, loss, moment.images) if log else {}

    @torch.no_grad()
    def codes(self, outputs: SwavOutput, images: int) -> Tensor:
        """Codes [A, n, K] of this rank's rows, over the global batch and the queue when it has been filled.

        Afterwards the batch's embeddings enter the queue in the order of the global batch (ranks in turn).
        """
        scores = self._by_crop(outputs.scores).index_select(0, self.assignment)
        rows, length = scores.shape[1], self.queue.shape[1]
        if 0 < length <= images - self.queue_start:  # in images, which the host knows
            scores = torch.cat([scores, self._queue_scores()], dim=1)
        if length > 0 and images >= self.queue_start:
            self._enqueue(self._by_crop(outputs.embeddings).index_select(0, self.assignment))
        return sinkhorn(scores, self.eps, self.iterations, self.group)[:, :rows]

    def after_backward(self, moment: Moment) -> None:
        """Freezes: without a gradient, momentum, weight decay and LARC leave the prototypes alone as well."""
        if moment.images < self.freeze_images:
            self.head.prototypes.weight.grad = None

    def state_dict(self) -> dict[str, Tensor]:
        """`queue` [A, length, D], newest first, zeros where not filled; when each prototype was last nearest."""
        return {"queue": self.queue, "last_nearest": all_max_(self.last_nearest, self.group)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, own in ("queue", self.queue), ("last_nearest", self.last_nearest):
            take_saved(own, state[name], f"SwAV's {name}", "crops, prototypes and queue length")

    def _by_crop(self, rows: Tensor) -> Tensor:
        return rows.unflatten(0, (self.crops, -1))

    def _queue_scores(self) -> Tensor:
        """Scores of this rank's share of the queue: every rank holds all of it, but it counts once. -inf where a row
        is not filled."""
        share = self.queue.tensor_split(world_size(self.group), dim=1)[rank(self.group)]
        scores: Tensor = share @ whole(self.head.prototypes.weight).T
        return scores.masked_fill_((share == 0).all(dim=2, keepdim=True), -torch.inf)

    def _enqueue(self, embeddings: Tensor) -> None:
        fresh = all_gather_rows(embeddings.transpose(0, 1), self.group).transpose(0, 1)
        length = self.queue.shape[1]
        self.queue.copy_(torch.cat([fresh, self.queue], dim=1)[:, :length])

    @torch.no_grad()
    def _note_nearest(self, scores: Tensor, images: int) -> None:
        self.last_nearest.index_fill_(0, scores.argmax(dim=1), images)

    @torch.no_grad()
    def _metrics(self, outputs: SwavOutput, codes: Tensor, loss: Tensor, images: int) -> dict[str, Tensor]:
        """What distinguishes learning from collapse. The codes' mean is uniform by construction and would say nothing.

        - `code_entropy` of a sample, in nats: near ln K the codes say nothing.
        - `prediction_entropy` of the mean prediction: low when few prototypes are predicted.
        - `prototypes_used`: share nearest to some crop of the batch; `prototypes_dead`: share nearest to none
          in the last 10 K images.
        """
        z, k = outputs.embeddings, outputs.scores.shape[1]
        predictions = F.softmax(outputs.scores / self.temperature, dim=1)
        means = [loss, entropy(codes).mean(), predictions.mean(0), *moments(z)]
        loss, code_entropy, prediction, mean, moment = all_mean([value.double() for value in means], self.group)
        nearest = all_max_(self.last_nearest, self.group)
        metrics = {
            "loss": loss,
            "code_entropy": code_entropy,
            "prediction_entropy": entropy(prediction),
            **spread(mean, moment),
            "prototypes_used": (nearest == images).float().mean(),
            "prototypes_dead": (nearest < images - 10 * k).float().mean(),
        }
        return {name: value.float() for name, value in metrics.items()}
