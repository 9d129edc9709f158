"""Sinkhorn-Knopp: soft assignments of samples to prototypes under the constraint of equal use.

Among all Q whose every sample has mass 1/N and whose every prototype has mass 1/K it seeks the one that maximises
``<Q, scores> + eps · entropy(Q)`` (Cuturi 2013; as in SwAV, Caron et al. 2020, section 3.1). The solution has the
form ``diag(u) · exp(scores / eps) · diag(v)``, so prototypes and samples are normalised in turn. The loop ends
with the samples: every code sums to one exactly, prototypes are used equally up to what the iterations leave.

Scales common to a whole normalisation (1/K, 1/N, the sum of Q) cancel in the next one and are therefore omitted.
"""

import torch
import torch.distributed as dist
from torch import Tensor

from seer_pipe.distributed.collectives import all_max_, all_sum_
from seer_pipe.objectives.swav.settings import LOG_DOMAIN_BELOW


@torch.no_grad()
def sinkhorn(scores: Tensor, eps: float, iterations: int, group: dist.ProcessGroup | None = None) -> Tensor:
    """Codes of all samples of the global batch, with equal use of the prototypes over all ranks.

    Args:
        scores: [A, n, K], this rank's samples against K prototypes for each of A assignment crops, which are
            independent problems solved in the same collectives. n may differ between ranks. A row of -inf is no
            sample: it takes no part.
        eps: weight of the entropy; smaller is sharper.
        iterations: how often prototypes and samples are normalised.
        group: the ranks that hold the batch; None is all of them.

    Returns:
        [A, n, K] float32 (float64 of float64); every row sums to one, those of -inf to zero.

    Nothing is read back to the host. Collectives: ``iterations + 1`` all-reduces (``2 · iterations`` below
    `LOG_DOMAIN_BELOW`).
    """
    with torch.autocast(scores.device.type, enabled=False):
        logits = scores.to(torch.promote_types(scores.dtype, torch.float32)) / eps
        if eps < LOG_DOMAIN_BELOW:
            return _log_domain(logits, iterations, group)
        return _direct(logits, iterations, group)


def _direct(logits: Tensor, iterations: int, group: dist.ProcessGroup | None) -> Tensor:
    peak = all_max_(logits.amax(dim=(1, 2), keepdim=True), group)
    q = (logits - peak).exp_()
    tiny = torch.finfo(q.dtype).tiny  # a prototype out of everyone's reach stays unused instead of dividing by zero
    for _ in range(iterations):
        q /= all_sum_(q.sum(dim=1, keepdim=True), group).clamp_min_(tiny)
        q /= q.sum(dim=2, keepdim=True).clamp_min_(tiny)
    return q


def _log_domain(logits: Tensor, iterations: int, group: dist.ProcessGroup | None) -> Tensor:
    log_q = logits
    for _ in range(iterations):
        peak = all_max_(log_q.amax(dim=1, keepdim=True), group)
        log_q = log_q - peak
        log_q -= all_sum_(log_q.exp().sum(dim=1, keepdim=True), group).log_()
        log_q -= log_q.logsumexp(dim=2, keepdim=True).clamp_min_(torch.finfo(log_q.dtype).min)
    return log_q.exp_()
