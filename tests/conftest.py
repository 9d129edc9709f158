"""Fixtures that several rooms share."""

import os
from pathlib import Path

import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")  # two cores: parallel test processes must not fight over them


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images used by some tests; they skip where it is absent."""
    beside = Path(__file__).resolve().parents[2] / "shared" / "data"
    folder = Path(os.environ.get("SEER_PIPE_DATA", beside))
    if not folder.is_dir():
        pytest.skip(f"no real images at {folder}: set SEER_PIPE_DATA to run this test")
    return folder
