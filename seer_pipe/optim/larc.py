"""LARC and LARS: SGD whose rate follows, parameter by parameter, the ratio of weight to gradient (You et al. 2017).

For a parameter p with gradient g, as published with SwAV::

    local = trust · |p| / (|g| + weight_decay · |p| + eps)        (1 where p is zero)
    g     = local · (g + weight_decay · p)
    p     = p - lr · (momentum buffer after g)

The norms are those of the whole parameter, however it is sharded.
"""

from collections import defaultdict
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import ParamsT

from seer_pipe.distributed.collectives import local
from seer_pipe.distributed.parts import cut_over


class Larc(torch.optim.Optimizer):
    """Layer-wise adaptive SGD with momentum.

    Args:
        params: parameters or groups; whole, or parts as FSDP2 and fairscale make them. Those without gradient are
            skipped: neither decay nor momentum moves them.
        trust: trust coefficient.
        clip: the local rate never exceeds `lr` (LARC's clipping mode). Without it `lr` multiplies the local rate
            (also known as LARS), which is what SwAV and SEER use.
        adapt: False, for a group of parameters, is plain SGD without decay. SwAV and SEER adapt all.
        eps: added to the denominator.

    A step has one all-reduce for each way of sharding among the parameters (FSDP2 has one), none if nothing is
    sharded, and reads nothing back to the host. It overwrites the gradients. Parameters have a momentum buffer from
    the first step on, also while they are frozen, so that a checkpoint always holds the same keys.

    Under `torch.amp.GradScaler` a step whose gradients overflowed moves neither parameters nor momentum, nor does one
    for which `skip` was set true; both are decided on the device.
    """

    skip: Tensor | None = None
    _step_supports_amp_scaling = True  # the scaler hands over what it found instead of reading it back

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        clip: bool = False,
        adapt: bool = True,
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "clip": clip,
            "adapt": adapt,
            "eps": eps,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        found_inf: Tensor | None = getattr(self, "found_inf", None)
        reasons = [local(flag) > 0 for flag in (found_inf, self.skip) if flag is not None]
        overflow = torch.stack(reasons).any() if reasons else None
        moved = [[p for p in group["params"] if p.grad is not None] for group in self.param_groups]
        if overflow is not None:
            for p in (p for params in moved for p in params):
                local(p.grad).masked_fill_(overflow, 0.0)
        adapted = [params if group["adapt"] else [] for group, params in zip(self.param_groups, moved, strict=True)]
        self._before_norms(adapted)
        norms = _norms([p for params in adapted for p in params])
        for group, params, scaled in zip(self.param_groups, moved, adapted, strict=True):
            if scaled:
                self._scale(scaled, torch.stack([norms[p] for p in scaled]), group)
            self._move(params, group, overflow)
        return loss

    def _before_norms(self, adapted: list[list[Tensor]]) -> None:
        """What is done to the gradients of each group before their norms are taken."""

    def _scale(self, params: list[Tensor], norms: Tensor, group: dict[str, Any]) -> None:
        """Replace each gradient by ``local · (g + weight_decay · p)``, given the norms [P, 2] of p and g."""
        rates = _local_rates(norms, group)
        gradients = [local(p.grad) for p in params]
        torch._foreach_add_(gradients, [local(p) for p in params], alpha=group["weight_decay"])
        torch._foreach_mul_(gradients, list(rates.unbind()))

    def _move(self, moved: list[Tensor], group: dict[str, Any], overflow: Tensor | None) -> None:
        """Momentum, then the parameters; where ``overflow`` is set, nothing."""
        for p in group["params"]:
            if p.requires_grad and p not in self.state:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        if not moved:
            return
        params, gradients = [local(p) for p in moved], [local(p.grad) for p in moved]
        buffers = [local(self.state[p]["momentum_buffer"]) for p in moved]
        if overflow is None:
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, gradients)
            torch._foreach_add_(params, buffers, alpha=-group["lr"])
            return
        going = (~overflow).float()
        torch._foreach_mul_(gradients, going)
        torch._foreach_mul_(buffers, 1 + going * (group["momentum"] - 1))
        torch._foreach_add_(buffers, gradients)
        torch._foreach_add_(params, torch._foreach_mul(buffers, going * -group["lr"]))


class Lars(Larc):
    """LARS as SimCLR, BYOL and Barlow Twins have it: the norm is that of the decayed gradient.

    local = trust · |p| / |g + weight_decay · p|, and 1 where either norm is zero; the rest is `Larc`'s.
    """

    def _before_norms(self, adapted: list[list[Tensor]]) -> None:
        for group, params in zip(self.param_groups, adapted, strict=True):
            if params:
                decay, gradients = group["weight_decay"], [local(p.grad) for p in params]
                torch._foreach_add_(gradients, [local(p) for p in params], alpha=decay)

    def _scale(self, params: list[Tensor], norms: Tensor, group: dict[str, Any]) -> None:
        weight, gradient = norms.unbind(dim=1)
        rates = (group["trust"] * weight / gradient).masked_fill((weight == 0) | (gradient == 0), 1.0)
        torch._foreach_mul_([local(p.grad) for p in params], list(rates.unbind()))


def _local_rates(norms: Tensor, group: dict[str, Any]) -> Tensor:
    """Factors [P] of ``g + weight_decay · p`` from the norms [P, 2] of p and g.

    Where p is zero it is 1; where g is zero it is 0, for there apex's LARC takes neither a step nor decay.
    """
    weight, gradient = norms.unbind(dim=1)
    rates = group["trust"] * weight / (gradient + group["weight_decay"] * weight + group["eps"])
    if group["clip"]:
        rates = (rates / group["lr"]).clamp_max(1)
    return rates.masked_fill(gradient == 0, 0.0).masked_fill(weight == 0, 1.0)


def _norms(params: list[Tensor]) -> dict[Tensor, Tensor]:
    """The norms [2] of each parameter and of its gradient, over all of their shards."""
    layouts: dict[tuple[dist.ProcessGroup, ...], list[Tensor]] = defaultdict(list)
    for p in params:
        layouts[cut_over(p)].append(p)
    norms: dict[Tensor, Tensor] = {}
    for groups, members in layouts.items():
        shards = [local(p) for p in members] + [local(p.grad) for p in members]
        squares = torch.stack(torch._foreach_norm(shards, 2, torch.float32)).square_()
        for group in groups:
            dist.all_reduce(squares, group=group)
        norms.update(zip(members, squares.sqrt_().view(2, -1).unbind(dim=1), strict=True))
    return norms
