"""LARC: SGD whose rate follows, parameter by parameter, the ratio of weight to gradient (You et al. 2017).

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
from torch.distributed.tensor import DTensor
from torch.optim.optimizer import ParamsT


class Larc(torch.optim.Optimizer):
    """Layer-wise adaptive SGD with momentum.

    Args:
        params: parameters or groups; plain, or DTensors as FSDP2 makes them. Those without gradient are skipped:
            neither decay nor momentum moves them.
        trust: trust coefficient.
        clip: the local rate never exceeds `lr` (LARC's clipping mode). Without it `lr` multiplies the local rate
            (also known as LARS), which is what SwAV and SEER use.
        exclude_1d: biases and norm weights get plain SGD without decay. SwAV and SEER exclude nothing.
        eps: added to the denominator.

    A step has one all-reduce for each way of sharding among the parameters (FSDP2 has one), none if nothing is
    sharded, and reads nothing back to the host. It overwrites the gradients. Parameters have a momentum buffer from
    the first step on, also while they are frozen, so that a checkpoint always holds the same keys.
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 0.0,
        trust: float = 0.001,
        clip: bool = False,
        exclude_1d: bool = False,
        eps: float = 1e-8,
    ) -> None:
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "trust": trust,
            "clip": clip,
            "exclude_1d": exclude_1d,
            "eps": eps,
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        norms = _norms([p for group in self.param_groups for p in group["params"] if _adapted(p, group)])
        for group in self.param_groups:
            self._step_group(group, norms)
        return loss

    def _step_group(self, group: dict[str, Any], norms: dict[Tensor, Tensor]) -> None:
        for p in group["params"]:
            if p.requires_grad and p not in self.state:
                self.state[p]["momentum_buffer"] = torch.zeros_like(p)
        moved = [p for p in group["params"] if p.grad is not None]
        if adapted := [p for p in moved if p in norms]:
            rates = _local_rates(torch.stack([norms[p] for p in adapted]), group)
            gradients = [_local(p.grad) for p in adapted]
            torch._foreach_add_(gradients, [_local(p) for p in adapted], alpha=group["weight_decay"])
            torch._foreach_mul_(gradients, list(rates.unbind()))
        if moved:
            buffers = [_local(self.state[p]["momentum_buffer"]) for p in moved]
            torch._foreach_mul_(buffers, group["momentum"])
            torch._foreach_add_(buffers, [_local(p.grad) for p in moved])
            torch._foreach_add_([_local(p) for p in moved], buffers, alpha=-group["lr"])


def _adapted(p: Tensor, group: dict[str, Any]) -> bool:
    return p.grad is not None and not (group["exclude_1d"] and p.ndim <= 1)


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
        layouts[_shard_groups(p)].append(p)
    norms: dict[Tensor, Tensor] = {}
    for groups, members in layouts.items():
        shards = [_local(p) for p in members] + [_local(p.grad) for p in members]
        squares = torch.stack(torch._foreach_norm(shards, 2, torch.float32)).square_()
        for group in groups:
            dist.all_reduce(squares, group=group)
        norms.update(zip(members, squares.sqrt_().view(2, -1).unbind(dim=1), strict=True))
    return norms


def _shard_groups(p: Tensor) -> tuple[dist.ProcessGroup, ...]:
    """The groups that a parameter's shards are spread over; what is whole or replicated counts once."""
    if not isinstance(p, DTensor):
        return ()
    placements = enumerate(p.placements)
    return tuple(p.device_mesh.get_group(dim) for dim, placement in placements if placement.is_shard())


def _local(tensor: Tensor | None) -> Tensor:
    assert tensor is not None
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor
