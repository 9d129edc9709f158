"""Runs ``seer-pipe`` as a process of its own, without the seconds that its imports take.

Each is forked from the server that ranks of tests are forked from, which has imported torch and DALI once.
"""

import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

from tests.distributed import processes

TIMEOUT = 900  # seconds


def seer_pipe(*arguments: object, first: Callable[[], None] | None = None) -> subprocess.CompletedProcess[str]:
    """What ``seer-pipe ARGUMENTS`` prints, and its exit code; ``first`` is called in the process before."""
    command = ["seer-pipe", *map(str, arguments)]
    with tempfile.TemporaryDirectory() as folder:
        process = processes.Process(target=_run, args=(command, Path(folder), dict(os.environ), str(Path.cwd()), first))
        process.start()
        try:
            process.join(TIMEOUT)
            assert process.exitcode is not None, f"{command} did not end within {TIMEOUT} s"
        finally:
            process.kill()
            process.join()
        out, err = (Path(folder, name).read_text() for name in ("stdout", "stderr"))
    return subprocess.CompletedProcess(command, process.exitcode, out, err)


def _run(
    command: list[str], folder: Path, environment: dict[str, str], cwd: str, first: Callable[[], None] | None
) -> None:
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    for number, name in ((1, "stdout"), (2, "stderr")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    sys.stdout, sys.stderr = (open(number, "w", buffering=1, closefd=False) for number in (1, 2))  # noqa: SIM115
    sys.argv = command
    if first is not None:
        first()
    from seer_pipe.cli import main

    main()
