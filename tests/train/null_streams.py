"""fairscale on a CPU: null streams in the place of CUDA's, so that gloo ranks hold its arithmetic to one process.

Gloo wants a reduce-scatter's input flat, where NCCL takes fairscale's buckets, a row a rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import pytest
import torch
import torch.distributed as dist
from fairscale.nn import FullyShardedDataParallel
from torch import Tensor

from seer_pipe.train import fairscale


class NullStream:
    """Everything is done when it is asked for, so there is nothing to wait for."""

    def wait_stream(self, _other: object) -> None: ...


@contextmanager
def null_streams() -> Iterator[None]:
    """fairscale's engine takes the CPU within it."""
    null, set_up, reduce_scatter = NullStream(), FullyShardedDataParallel._setup_streams, dist._reduce_scatter_base

    def reduce_scatter_rows(output: Tensor, input: Tensor, group: dist.ProcessGroup) -> None:
        reduce_scatter(output, input.flatten(), group=group)

    def set_up_null(self: FullyShardedDataParallel) -> None:
        set_up(self)
        self._streams.update(dict.fromkeys(("fp32_to_fp16", "all_gather", "post_backward"), null))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "current_stream", lambda *_: null)
        patch.setattr(torch.cuda, "stream", lambda _stream: nullcontext())
        patch.setattr(Tensor, "record_stream", lambda *_: None)
        patch.setattr(FullyShardedDataParallel, "_setup_streams", set_up_null)
        patch.setattr(dist, "_reduce_scatter_base", reduce_scatter_rows)
        patch.setattr(fairscale, "DEVICES", {"cpu"})
        yield
