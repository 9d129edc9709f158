"""The decoder's own lines on standard error: left out and counted; all else arrives at once, from a crash too."""

import os
import subprocess
import sys

import pytest

from seer_pipe.data.stray import Sieve

STRAY = b"\x1b[0;31m[ERROR] \x1b[0m[libjpeg_turbo_decoder] Could not decode jpeg code stream\n"


BROKEN = """
import io, os
import numpy as np
from seer_pipe.data.dali import Augmenter, BadImages
from seer_pipe.data.views import CropSpec, draw
from seer_pipe.quickstart.draw import picture

image, buffer = picture("rings", 0), io.BytesIO()
image.save(buffer, "JPEG")
specs = [CropSpec(1, 16, (0.3, 1.0))]
views = draw(0, 0, np.array([0]), np.array([image.height]), np.array([image.width]), specs)
augmenter = Augmenter(specs, threads=1, max_batch=1)
os.write(2, b"someone else\\n")
try:
    augmenter([buffer.getvalue()[: len(buffer.getvalue()) // 2]], views)
except BadImages:
    print("refused")
augmenter.close()
"""


def test_an_image_that_does_not_decode_says_nothing_itself() -> None:
    # a process of its own: there is one sieve per process, and another test's augmenter may hold it
    done = subprocess.run([sys.executable, "-c", BROKEN], capture_output=True, text=True, check=True)
    assert done.stdout == "refused\n"
    assert "[ERROR]" not in done.stderr
    said = done.stderr[done.stderr.index("someone else") :]  # behind what is compiled where no test did so before
    first, last = said.splitlines()
    assert first == "someone else"
    assert last.endswith("of the image decoder kept out of this log: each is of an image that does not decode")
    assert int(last.split()[0]) >= 1  # it was there to be left out


def test_it_lasts_from_the_first_holder_to_the_last(capfd: pytest.CaptureFixture[str]) -> None:
    sieve = Sieve()
    sieve.hold()
    sieve.hold()
    os.write(2, STRAY)
    sieve.release()
    os.write(2, STRAY + b"[ERROR] of our own\n")
    sieve.release()
    os.write(2, STRAY)  # nothing decodes now
    said = capfd.readouterr().err.splitlines()
    assert said[0] == "[ERROR] of our own"
    assert said[1].startswith("2 messages of the image decoder")
    assert said[2] == STRAY.decode().rstrip()


@pytest.mark.parametrize("last", ["os.abort()", "os.kill(os.getpid(), 9)", "os._exit(3)"])
def test_last_words_arrive(last: str) -> None:
    program = f"""
import faulthandler, os
from seer_pipe.data.stray import SIEVE
faulthandler.enable()
SIEVE.hold()
os.write(2, b"50%\\r")
assert input() == "seen"
os.write(2, b"last words\\n")
{last}
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        assert process.stdin is not None
        assert process.stderr is not None
        assert os.read(process.stderr.fileno(), 100) == b"50%\r"  # without the end of its line
        process.stdin.write(b"seen\n")
        process.stdin.close()
        rest = process.stderr.read()
        assert process.wait() != 0
    assert rest.startswith(b"last words\n")
    assert b"BrokenPipe" not in rest  # of what has no one left to count for
    assert (b"Fatal Python error: Aborted" in rest) == (last == "os.abort()")
