"""Finds what would make the host wait for a GPU, without a GPU."""

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
def no_host_sync() -> Iterator[None]:
    """Fails on operations that take tensors from the host. For tensors on ``meta``, whose values cannot be read."""
    with _NoHostTensors():
        yield
