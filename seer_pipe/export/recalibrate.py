"""BatchNorm statistics of the images that will be met, instead of the crops that were trained on."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from seer_pipe.errors import UserError


@torch.no_grad()
def recalibrate_batch_norm(trunk: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running mean and variance of every BatchNorm by their average over ``batches``.

    In training they mix crops of all resolutions; full-size images have others. ``batches``: [n, 3, H, W] each,
    normalised, of one n, some thousand images in all. Nothing else of the trunk changes, nor does its mode.
    """
    norms = [module for module in trunk.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    modes = {module: module.training for module in trunk.modules()}
    device = next(trunk.parameters()).device
    trunk.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # torch's way to say: a plain average
        norm.train()
    for batch in batches:
        trunk(batch.to(device))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    for module, mode in modes.items():
        module.training = mode
    if norms and norms[0].num_batches_tracked == 0:
        raise UserError("no images to compute BatchNorm statistics from")
