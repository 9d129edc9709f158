"""Streaming self-supervised pretraining on uncurated web images."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from seer_pipe.api import evaluate_finetune as evaluate_finetune
    from seer_pipe.api import evaluate_knn as evaluate_knn
    from seer_pipe.api import evaluate_linear as evaluate_linear
    from seer_pipe.api import load_backbone as load_backbone
    from seer_pipe.api import load_sound_backbone as load_sound_backbone
    from seer_pipe.api import pretrain as pretrain
    from seer_pipe.api import views as views
    from seer_pipe.data.samples import stream as stream

__version__ = "0.1.0"

#: What is there for programs of one's own, and the module that has it.
_HOMES = {"stream": "seer_pipe.data.samples"} | dict.fromkeys(
    (
        "pretrain",
        "load_backbone",
        "load_sound_backbone",
        "evaluate_knn",
        "evaluate_linear",
        "evaluate_finetune",
        "views",
    ),
    "seer_pipe.api",
)


def __getattr__(name: str) -> Any:
    """Loaded when it is asked for: it brings torch."""
    if name in _HOMES:
        return getattr(import_module(_HOMES[name]), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
