"""Finds what makes the host wait for the GPU."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class _NoHostTensors(TorchDispatchMode):
    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        for argument in tree_leaves((args, kwargs or {})):
            if isinstance(argument, torch.Tensor) and argument.device.type == "cpu":
                raise AssertionError(f"{func} takes a tensor from the host")
        return func(*args, **(kwargs or {}))


@contextmanager
def no_host_sync(device: str) -> Iterator[None]:
    """Fails where the host waits for `device`.

    Tensors on ``meta`` need no GPU: they have no values to read, and operations must not take host tensors. On
    ``cuda`` torch watches itself, and also sees the small copies that it makes on its own.
    """
    if device == "meta":
        with _NoHostTensors():
            yield
        return
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")
