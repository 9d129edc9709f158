"""What several objectives minimise over many crops: those of an image predict what another one of it is."""

import torch.nn.functional as F
from torch import Tensor


def predict_others(scores: Tensor, targets: Tensor, crops: Tensor, temperature: float) -> Tensor:
    """Cross-entropy of every crop's prediction under the targets of the others::

        mean over a in crops of  1/(V-1) sum over v != a of  -sum_k targets_a[k] · log softmax_k(scores_v / temperature)

    Args:
        scores: of all crops, [V, n, K].
        targets: distributions [A, n, K] without gradient.
        crops: of which crops the targets are, [A] int64 on the scores' device.

    Uniform predictions cost ln K, whatever the targets are. (SwAV: arXiv 2006.09882, equations 1 and 2; DINO: arXiv
    2104.14294, equation 3.)
    """
    log_p = F.log_softmax(scores / temperature, dim=2)
    others = log_p.sum(dim=0) - log_p.index_select(0, crops)  # [A, n, K]: all but the target's own crop
    return -(targets * others).sum() / (targets.shape[0] * targets.shape[1] * (len(scores) - 1))
