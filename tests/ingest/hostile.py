"""Processors that do what a decoder may do to its process; workers import them by name."""

import ctypes
import os
import time
from pathlib import Path

import numpy as np

from ingest.image import ImageSettings, Stored, process


def hostile(data: bytes, settings: ImageSettings) -> Stored:
    match data:
        case b"segfault":
            ctypes.string_at(0)
        case b"abort":
            os.abort()
        case b"exit":
            os._exit(3)
        case b"hang":
            while True:  # never back in the worker's loop, so only a signal ends it
                time.sleep(3600)
        case b"memory":
            np.ones(1 << 40, np.uint8)
        case b"exception":
            raise AttributeError("a bug")
    if data.startswith(b"hang and tell "):
        Path(data.removeprefix(b"hang and tell ").decode()).write_text(str(os.getpid()))
        time.sleep(3600)
    if data.startswith(b"wait for "):
        file = Path(data.removeprefix(b"wait for ").decode())
        while not file.exists():
            time.sleep(0.01)
        return Stored(str(os.getpid()).encode(), 1, 1, "", 1, 1, None, False)
    return process(data, settings)


def unimportable() -> None:
    """``__module__`` is changed by the test, so that a worker does not find it."""
