"""Predicting the classes that images came with: class names, or the words that stood beside them on the web.

Of an image with the classes T, k of them, and the logits z of a crop (Mahajan et al. 2018, arXiv 1805.00932, whose
targets are 1/k)::

    softmax   sum over t in T of  -1/k · log softmax(z)_t         with k = 1 the cross entropy of a class
    sigmoid   sum over classes c of  -log sigmoid(z_c) where c is in T, else -log sigmoid(-z_c)

The loss is the mean over crops and over the images of the global batch that have a class; others have no loss.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seer_pipe.distributed.collectives import all_sum_, world_size
from seer_pipe.errors import UserError
from seer_pipe.objectives.base import Moment, Objective
from seer_pipe.objectives.label_settings import LossName
from seer_pipe.objectives.targets import Targets


class Labels(Objective):
    """For V ``crops`` of each image, by the classes of its sample."""

    def __init__(self, targets: Targets, kind: LossName, crops: int, device: torch.device) -> None:
        self._targets, self._kind, self._crops, self._device = targets, kind, crops, device

    def loss(self, outputs: Tensor, moment: Moment, log: bool = False) -> tuple[Tensor, dict[str, Tensor]]:
        logits = outputs.to(torch.promote_types(outputs.dtype, torch.float32)).unflatten(0, (self._crops, -1))
        rows, classes = (torch.from_numpy(of).to(self._device) for of in self._targets.of(moment.samples.numpy()))
        own = logits[:, rows, classes]  # [V, m]
        sums = logits.new_zeros(logits.shape[:2]).index_add(1, rows, own)
        count = logits.new_zeros(logits.shape[1]).index_add(0, rows, torch.ones_like(own[0]))  # of classes, [n]
        if self._kind == "softmax":
            losses = logits.logsumexp(2) - sums / count.clamp_min(1)
        else:
            losses = F.softplus(logits).sum(2) - sums
        labelled = (count > 0).to(logits.dtype)
        total = (losses * labelled).sum() / self._crops
        images = all_sum_(labelled.sum())
        # Ranks are averaged, and may have unequally many images with a class.
        loss = world_size() * total / images.clamp_min(1)
        return loss, self._metrics(logits.detach(), rows, own.detach(), total.detach(), images) if log else {}

    def _metrics(self, logits: Tensor, rows: Tensor, own: Tensor, total: Tensor, images: Tensor) -> dict[str, Tensor]:
        """Over all ranks: the loss; ``accuracy``, how often the likeliest class is one of the image's; ``labelled``,
        the share of images that have one."""
        right = logits.new_zeros(logits.shape[:2]).index_add(1, rows, (own == logits.amax(2)[:, rows]).to(own.dtype))
        hits = right.clamp_max(1).sum() / self._crops
        summed = all_sum_(torch.stack([total, hits, torch.full_like(total, logits.shape[1])]))
        loss, accuracy = summed[:2] / images.clamp_min(1)
        return {"loss": loss, "accuracy": accuracy, "labelled": images / summed[2]}

    def state_dict(self) -> dict[str, Tensor]:
        return {"vocabulary": torch.tensor(self._targets.digest)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        if int(state["vocabulary"]) != self._targets.digest:
            raise UserError("objective.vocabulary: is another one than the run began with; put it back, or train in "
                            "another folder")  # fmt: skip
