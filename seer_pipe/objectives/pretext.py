"""The loss of guessing a label that the geometry of the views gives."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from seer_pipe.distributed.collectives import all_mean


def guess(logits: Tensor, labels: Tensor, log: bool) -> tuple[Tensor, dict[str, Tensor]]:
    """The mean cross entropy of logits [m, K] with labels [m] int64; with ``log`` also, over all ranks, that and
    ``pretext_accuracy``, how often the label is the largest logit."""
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    loss = F.cross_entropy(logits, labels)
    if not log:
        return loss, {}
    right = (logits.detach().argmax(1) == labels).to(loss.dtype).mean()
    mean_loss, accuracy = all_mean([loss.detach(), right])
    return loss, {"loss": mean_loss, "pretext_accuracy": accuracy}
