"""What a run says of itself while it goes on."""

import os
import time
from pathlib import Path

from seer_pipe.train.heartbeat import Heartbeat, read_heartbeat


def test_a_heartbeat_says_how_far_and_how_often(tmp_path: Path) -> None:
    assert read_heartbeat(tmp_path) is None
    heart = Heartbeat(tmp_path, 3, 10, 8, 2)
    first = read_heartbeat(tmp_path)
    assert first is not None
    assert (first["state"], first["step"], first["steps"]) == ("starting", 3, 10)
    assert (first["world"], first["restarts"]) == (2, 0)
    assert (first["pid"], first["images_per_s"], first["eta_s"]) == (os.getpid(), None, None)
    assert abs(first["time"] - time.time()) < 60
    heart.beat("running", 4, loss=1.5)
    running = read_heartbeat(tmp_path)
    assert running is not None
    assert (running["state"], running["loss"]) == ("running", 1.5)
    assert running["images_per_s"] > 0
    assert abs(running["eta_s"] * running["images_per_s"] / 8 - 6) < 1e-6
    heart.beat("running", 5)  # too soon
    assert read_heartbeat(tmp_path) == running
    heart.beat("done", 10)
    done = read_heartbeat(tmp_path)
    assert done is not None
    assert (done["state"], done["step"], done["loss"], done["eta_s"]) == ("done", 10, 1.5, 0)


def test_a_restart_counts(tmp_path: Path) -> None:
    for expected in (0, 1, 2):
        Heartbeat(tmp_path, 0, 10, 8, 1)
        beat = read_heartbeat(tmp_path)
        assert beat is not None
        assert beat["restarts"] == expected
