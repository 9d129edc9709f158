"""A decoding worker: the process at the other end of one of ``ingest.workers``' pipes."""

from __future__ import annotations

import ctypes
import os
import pickle
import resource
import signal
import sys
from multiprocessing.connection import Connection

from ingest.image import BadImage

PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(descriptor: int, parent: int) -> None:
    """Answer images with what the processor makes of them, until the pipe closes or the parent dies."""
    if sys.platform == "linux":  # a worker in an endless decode would not see its pipe close
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:
            return
    pipe = Connection(descriptor)
    processor, settings, memory_limit = pickle.loads(pipe.recv_bytes())
    resource.setrlimit(resource.RLIMIT_DATA, (memory_limit, memory_limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    pipe.send(None)  # ready; errors until here were printed on stderr
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libtiff writes about every damaged file
    while True:
        try:
            data = pipe.recv_bytes()
        except EOFError:
            return
        try:
            answer = processor(data, settings)
        except BadImage as error:
            answer = error
        pipe.send(answer)


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
