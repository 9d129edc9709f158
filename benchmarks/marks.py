"""What the benchmarks of a step measure by: seconds between marks, peak memory, the rate of a matrix product."""

from __future__ import annotations

import ctypes
import gc
import math
import time
from collections import defaultdict
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn


class Marks:
    """Seconds between marks, by the name of the later one. On a GPU marks are events in its stream: nothing waits."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu, self._marks = device.type == "cuda", list[tuple[str, Any]]()
        self.clock: Callable[[], float] = time.process_time

    def __call__(self, name: str) -> None:
        moment: Any = self.clock()
        if self._on_gpu:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        self._marks.append((name, moment))

    def take(self) -> dict[str, float]:
        if self._on_gpu:
            torch.cuda.synchronize()
        found: dict[str, float] = defaultdict(float)
        for (_, before), (name, after) in pairwise(self._marks):
            found[name] += before.elapsed_time(after) / 1e3 if self._on_gpu else after - before
        self._marks.clear()
        return found

    def around_head(self, head: nn.Module) -> None:
        """The trunk's part of forward and backward apart from the head's."""

        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self("forward")
            if inputs[0].requires_grad:
                inputs[0].register_hook(lambda _: self("head"))

        head.register_forward_pre_hook(before)

    def after(self, name: str, function: Callable[..., Any], before: str | None = None) -> Callable[..., Any]:
        def marked(*args: Any, **options: Any) -> Any:
            if before is not None:
                self(before)
            result = function(*args, **options)
            self(name)
            return result

        return marked


class Memory:
    """Peak GB since it was made."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        gc.collect()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self._held = float(torch.cuda.memory_allocated())
        else:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
            self._held = resident("VmRSS")

    def peak(self) -> float:
        return ((torch.cuda.max_memory_allocated() if self._on_gpu else resident("VmHWM")) - self._held) / 1e9


def resident(which: str) -> float:
    status = Path("/proc/self/status").read_text()
    return 1024.0 * int(status.split(f"{which}:")[1].split()[0])


def matrix_peak(device: torch.device) -> float:
    """FLOP/s of a large matrix product, the best of ten."""
    on_gpu = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if on_gpu else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    marks, best = Marks(device), math.inf
    for _ in range(10):
        marks("start")
        a @ b
        marks("product")
        best = min(best, marks.take()["product"])
    return 2 * size**3 / best
