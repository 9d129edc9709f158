"""How a command line ends: by bad input that the user can fix, or by a reader of its output that went away."""

from __future__ import annotations

import os
import select
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import TextIO

#: The exit code where the reader of the output is gone, as the shell gives it of programs that SIGPIPE ends.
READER_GONE = 128 + signal.SIGPIPE


class UserError(ValueError):
    """Says in one line what is wrong, where (file, key, shard, sample), and what to do.

    Command-line tools print it as ``error: …`` without a traceback and exit with code 2.
    """


def run_to_end(cli: Callable[[], object]) -> None:
    """Run a command line, write out what it printed, and exit with its code.

    Where the reader of its output is gone, as with ``| head -1``, it ends silently with `READER_GONE`. OSError where
    the output cannot be written for another reason, such as a full disk; what ``cli`` raises passes through.
    """
    stdout, code = sys.stdout, None  # typer leaves another stream in its place, and rich another file under it
    output = None
    if stdout is not None:  # None: the process was started with it closed
        with suppress(OSError):  # no file, where a caller has put something else in its place
            output = os.dup(stdout.fileno())
    try:
        try:
            cli()
        except SystemExit as ended:
            code = ended.code
            if isinstance(ended.__context__, BrokenPipeError):  # which typer and rich take to be of the output
                raise ended.__context__ from None
        if stdout is not None:
            _flush(stdout)
    except BrokenPipeError:
        if stdout is None or output is None or not _reader_gone(output):
            raise
        with suppress(BrokenPipeError):
            _flush(stdout)
        code = READER_GONE
    sys.exit(code)


def _flush(stream: TextIO) -> None:
    try:
        stream.flush()
    except OSError:
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())  # what is left in it is written once more at the exit
        os.close(null)
        raise


def _reader_gone(output: int) -> bool:
    poll = select.poll()
    poll.register(output, 0)
    return any(state & (select.POLLERR | select.POLLHUP) for _, state in poll.poll(0))
