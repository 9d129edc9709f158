"""BatchNorm statistics of the images that will be met, instead of the crops that were trained on."""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from seer_pipe.errors import UserError


class _Moments:
    """The mean and the biased variance of each channel over all that passed a BatchNorm."""

    def __init__(self) -> None:
        self.count = 0  # values a channel
        self.mean: Tensor | float = 0.0
        self.squares: Tensor | float = 0.0  # of the deviations from the mean, summed

    def add(self, _: nn.Module, inputs: Any) -> None:
        """Joined about the common mean (Chan et al. 1979): a sum of squares would lose a spread small beside it."""
        values = inputs[0].float()
        count = values.numel() // values.shape[1]
        var, mean = torch.var_mean(values, [0, *range(2, values.dim())], correction=0)
        apart, self.count = mean.double() - self.mean, self.count + count
        self.mean = self.mean + apart * (count / self.count)
        self.squares = self.squares + count * (var.double() + apart.square() * (1 - count / self.count))


@torch.no_grad()
def recalibrate_batch_norm(trunk: nn.Module, batches: Iterable[Tensor]) -> None:
    """Replace the running mean and variance of every BatchNorm by those of all that it meets over ``batches``.

    In training they mix crops of all resolutions; full-size images have others. The variance is the biased one, which
    BatchNorm normalises by in training (torch's running one is n/(n-1) of it, and with few values that adds up from
    block to block), over all batches together (Wu and Johnson 2021, arXiv 2105.07576). ``batches``: [n, 3, H, W] each,
    normalised, some thousand images in all. Nothing else of the trunk changes, nor does its mode. Without BatchNorm
    nothing is to be done, and no image is looked at.
    """
    norms = {module: _Moments() for module in trunk.modules() if isinstance(module, _BatchNorm)}
    if not norms:
        return
    modes = {module: module.training for module in trunk.modules()}
    device = next(trunk.parameters()).device
    trunk.eval()
    with ExitStack() as hooks:
        for norm, moments in norms.items():
            hooks.callback(norm.register_forward_pre_hook(moments.add).remove)
            norm.reset_running_stats()
            norm.train()
        for batch in batches:
            trunk(batch.to(device))
    for module, mode in modes.items():
        module.training = mode
    for norm, moments in norms.items():
        if not moments.count:
            raise UserError("no images to compute BatchNorm statistics from")
        assert norm.running_mean is not None
        assert norm.running_var is not None
        norm.running_mean.copy_(moments.mean)  # type: ignore[arg-type]
        norm.running_var.copy_(moments.squares / moments.count)  # type: ignore[arg-type]
