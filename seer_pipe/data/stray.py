"""What image decoders write to standard error themselves: kept out of the way, and counted.

nvImageCodec writes a line for each image that does not decode, past every log, and no setting of DALI's ends that
(DALI_NVIMGCODEC_LOG_LEVEL=0 does not). Here such an image is replaced and its reason is kept, so the lines say nothing
new. While something decodes, standard error (the file descriptor, for these lines never see Python) leads to a
small process that leaves them out and hands on all else as it comes: a process of its own, so that the last words of
one that crashes still arrive.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
from contextlib import suppress
from threading import Lock

PATIENCE = 5.0  # seconds for the small process to end: one that inherited our standard error may hold it open

_SIEVE = r"""
import os, re
stray = re.compile(rb"(\x1b\[[\d;]*m)?\[(ERROR|WARNING)\] (\x1b\[0m)?\[\w+\] ")
count, rest = 0, b""
while chunk := os.read(0, 65536):
    *lines, rest = (rest + chunk).splitlines(keepends=True) + [b""]
    if not rest and lines and not lines[-1].endswith(b"\n"):
        rest = lines.pop()
    for line in lines:
        if stray.match(line):
            count += 1
        else:
            os.write(2, line)
    if not rest.startswith((b"\x1b", b"[")):  # no beginning of such a line: a prompt, or a bar
        os.write(2, rest)
        rest = b""
os.write(2, rest)
try:
    os.write(1, b"%d" % count)
except BrokenPipeError:
    pass  # it was killed, and does not ask any more
"""


class Sieve:
    """The one of this process, held by whatever decodes: begins with the first holder, ends with the last."""

    def __init__(self) -> None:
        self._lock, self._holders = Lock(), 0
        self._process: subprocess.Popen[bytes] | None = None
        self._real = -1

    def hold(self) -> None:
        with self._lock:
            self._holders += 1
            if self._holders == 1:
                with suppress(OSError):  # standard error is closed, or no more processes may be started
                    self._begin()

    def release(self) -> None:
        with self._lock:
            self._holders -= 1
            if self._holders == 0:
                self._end()

    def _begin(self) -> None:
        self._real = os.dup(2)
        ours, its = os.pipe()
        try:
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", _SIEVE], stdin=ours, stdout=subprocess.PIPE, stderr=self._real,
                start_new_session=True,  # Ctrl-C and a signal to the group are not for it: it ends with what it reads
            )  # fmt: skip
            os.dup2(its, 2)
        finally:
            os.close(ours)
            os.close(its)

    def _end(self) -> None:
        if self._process is None:
            return
        os.dup2(self._real, 2)
        os.close(self._real)
        process, self._process = self._process, None
        with suppress(subprocess.TimeoutExpired):
            if count := int(process.communicate(timeout=PATIENCE)[0] or 0):
                print(f"{count} {'message' if count == 1 else 'messages'} of the image decoder kept out of this log: "
                      "each is of an image that does not decode", file=sys.stderr, flush=True)  # fmt: skip

    def close(self) -> None:
        """Whoever still holds it."""
        with self._lock:
            self._end()


SIEVE = Sieve()
atexit.register(SIEVE.close)
