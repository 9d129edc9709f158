"""Streaming self-supervised pretraining on uncurated web images."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seer_pipe.data.samples import stream as stream

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """What is there for programs of one's own, loaded when it is asked for: it brings torch."""
    if name == "stream":
        from seer_pipe.data.samples import stream

        return stream
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
