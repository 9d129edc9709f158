"""The health of a run: steps that must not count, and ranks that hang.

A step whose loss or gradient is not finite on any rank is taken back on the device, on all ranks, without the host
waiting for it: the flag is reduced with the step, the update undone where it is set, and the host reads it a step
later. What is done then is ``Policy``'s: skip, after some in a row roll back, after some of those stop.
"""

from __future__ import annotations

import faulthandler
import math
import sys
from collections import deque
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from seer_pipe import config as settings
from seer_pipe.distributed.collectives import all_sum_, local, world_size
from seer_pipe.distributed.parts import cut_over
from seer_pipe.objectives.base import Objective
from seer_pipe.objectives.settings import Sign
from seer_pipe.optim.larc import Larc


class Verdict(NamedTuple):
    """What all ranks agree on about a step."""

    bad: bool  # loss or gradient not finite: the step was taken back
    rank: int | None  # the highest one whose own loss was not finite
    stop: bool  # a rank was asked to stop


class Guard:
    """Takes back a step that must not count. Around each: ``keep``, backward, ``check``, the update, ``settle``.

    It holds a copy of buffers, of the objective's state and, where the optimiser is none that can skip a step itself
    (LARC and LARS can), of parameters and optimiser state, sharded as they are; state that is too large for a copy
    takes itself back. (A counter that an optimiser keeps on the host counts a skipped step. What `before_step`
    normalises stays so.) ``stop`` may be set at any time, and travels with the next ``check``.
    """

    def __init__(self, network: nn.Module, optimizer: Optimizer, objective: Objective, device: torch.device) -> None:
        self._parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
        self._skips = optimizer if isinstance(optimizer, Larc) else None
        moved = [*self._parameters, *(value for own in optimizer.state.values() for value in own.values())]
        kept = [*network.buffers(), *(moved if self._skips is None else [])]
        live = [local(tensor) for tensor in kept if isinstance(tensor, Tensor)]
        self._network = [tensor for tensor in live if tensor.device.type == device.type]
        self._objective = objective
        self._kept = [tensor.clone() for tensor in self._live()]
        self._device = device
        self.bad = torch.zeros((), dtype=torch.bool, device=device)  # the last step, on the device
        self._sent: deque[tuple[Tensor, torch.cuda.Event | None]] = deque()
        self.stop = False

    def _live(self) -> list[Tensor]:
        """Asked for each time: an objective may have put other tensors in the place of its own."""
        return [*self._network, *map(local, self._objective.tensors())]

    @torch.no_grad()
    def keep(self) -> None:
        torch._foreach_copy_(self._kept, self._live())

    @torch.no_grad()
    def check(self, loss: Tensor, *, gradients: bool = True, norm: bool = False) -> Tensor | None:
        """After the backward pass, on every rank: agree on the step, and send the verdict on its way to the host.

        ``gradients``: they must be finite too. ``norm``: return that of the whole network's gradient, over all ranks.
        """
        bad_loss = bad = ~loss.detach().isfinite().all()
        norms = self._norms() if gradients or norm else None
        if gradients and norms is not None:
            bad = bad_loss | ~norms.isfinite().all()
        rank = dist.get_rank() if dist.is_initialized() else 0
        flags = torch.stack([
            bad.float(),
            bad_loss * float(rank + 1),
            torch.full((), float(self.stop), device=self._device),
        ])  # fmt: skip
        if dist.is_initialized():
            dist.all_reduce(flags, dist.ReduceOp.MAX)
        self.bad = flags[0] > 0
        if self._skips is not None:
            self._skips.skip = self.bad
        if self._device.type == "cuda":
            host = torch.empty(flags.shape, pin_memory=True)
            host.copy_(flags, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
            self._sent.append((host, event))
        else:
            self._sent.append((flags, None))
        return self._whole_norm(norms) if norm and norms is not None else None

    def _norms(self) -> Tensor:
        """Of the part of each parameter's gradient that this rank holds."""
        here = [local(p.grad) for p in self._parameters if p.grad is not None]
        return torch.stack(torch._foreach_norm(here, 2, torch.float32))

    def _whole_norm(self, norms: Tensor) -> Tensor:
        """The root of the sum of squares over all ranks, in which each part counts once, however many ranks hold it."""
        ranks = world_size()
        once = [math.prod(map(world_size, cut_over(p))) / ranks for p in self._parameters if p.grad is not None]
        weights = torch.tensor(once, pin_memory=norms.is_cuda).to(norms.device, non_blocking=True)
        return all_sum_((norms.square() * weights).sum()).sqrt()

    @torch.no_grad()
    def settle(self) -> None:
        for live, kept in zip(self._live(), self._kept, strict=True):
            torch.where(self.bad, kept, live, out=live)
        for state in self._objective.reversibles():
            state.take_back(self.bad)

    def verdicts(self, *, all_steps: bool = False) -> list[Verdict]:
        """Those not yet returned of the steps before the last; with ``all_steps`` the last one's too."""
        found = []
        while len(self._sent) > (0 if all_steps else 1):
            host, event = self._sent.popleft()
            if event is not None:
                event.synchronize()
            bad, rank, stop = host.tolist()
            found.append(Verdict(bad > 0, int(rank) - 1 if rank else None, stop > 0))
        return found

    def forget(self) -> None:
        """Drop the verdicts under way, after the steps themselves were discarded."""
        self._sent.clear()


@dataclass
class Policy:
    """What a bad step leads to. ``skipped``: bad steps in a row; ``rollbacks``: since the last checkpoint."""

    settings: settings.Health
    skipped: int = 0
    rollbacks: int = 0

    def judge(self, bad: bool) -> Literal["on", "skip", "rollback", "stop"]:
        if not bad:
            self.skipped = 0
            return "on"
        self.skipped += 1
        if self.skipped <= self.settings.max_skips:
            return "skip"
        return "rollback" if self.rollbacks < self.settings.max_rollbacks else "stop"


class Watchdog:
    """Ends this process, with the stack of each of its threads on stderr, if ``beat`` is not called for ``timeout`` s.

    A rank that dies or hangs leaves the others waiting inside a collective, where no Python runs; so the timer is the
    interpreter's own, in C. The launcher then ends the rest. Where several ranks run and this one leaves with an
    error, the timer keeps running: what hangs on the way out ends as well.
    """

    def __init__(self, timeout: float) -> None:
        self._timeout = timeout

    def beat(self) -> None:
        faulthandler.dump_traceback_later(self._timeout, exit=True, file=sys.__stderr__ or sys.stderr)

    def __enter__(self) -> Watchdog:
        self.beat()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None or not dist.is_initialized() or dist.get_world_size() == 1:
            faulthandler.cancel_dump_traceback_later()


class Signs:
    """Watches the objective's signs in the metrics of logged steps, and says what to try; once for each sign."""

    PATIENCE = 10  # logged steps in a row that show a sign

    def __init__(self, signs: Sequence[Sign]) -> None:
        self._seen = dict.fromkeys(signs, 0)

    def look(self, values: Mapping[str, float], settled: bool) -> Iterable[str]:
        """Warnings that became due. ``settled``: the warm-up, and what the objective holds fixed at first, are over."""
        for sign, times in self._seen.items():
            verdict = sign.judge(values)
            bad = settled and verdict is not None and not verdict[0]
            self._seen[sign] = times + 1 if bad else 0
            if self._seen[sign] == self.PATIENCE and verdict is not None:
                yield f"{verdict[1]}; {sign.advice}"
