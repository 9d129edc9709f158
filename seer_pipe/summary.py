"""The last line of a command, for people: what was done, how long it took, what may come next."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from contextlib import suppress

from seer_pipe.units import duration

_BEGAN = time.monotonic()  # of this program, as the first thing that a command line loads


def conclude(what: str, *then: str, began: float = _BEGAN) -> None:
    """Print it on standard error, past what is printed for programs; of several ranks by the first alone.

    ``what`` was done, with the place where it is; ``then``: commands that may come next.
    """
    if os.environ.get("RANK", "0") == "0" and sys.stderr is not None:
        with suppress(OSError):  # the terminal is gone: what was done is done
            print(line(what, time.monotonic() - began, then), file=sys.stderr, flush=True)


def line(what: str, seconds: float, then: Sequence[str]) -> str:
    """What, how long, and what next, as one line."""
    return f"{what} in {duration(seconds)}" + (f"; next: {', or '.join(then)}" if then else "")
