"""What moves is learnt from clips, and cannot be from frames."""

from pathlib import Path
from typing import Any

import pytest

from seer_pipe.evaluate.knn import evaluate_knn
from seer_pipe.run import start
from tests.objectives.motion import WAYS, motion_set
from tests.objectives.union import joined
from tests.train.helpers import small


@pytest.fixture(scope="module")
def sets(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("motion")
    return motion_set(root / "train", 160, seed=1), motion_set(root / "test", 160, seed=2)


def accuracies(sets: tuple[Path, Path], run: Path, frames: dict[str, Any], crops: dict[str, Any], trunk: str,
               rate: float, images: int) -> tuple[float, float]:  # fmt: skip
    """Of nearest neighbours, by the first weights and by those that SimCLR makes of them."""
    data, test = sets
    config = small(
        data,
        model={"name": trunk},
        views={"crops": [{"scale": [0.6, 1], **crops}], "frames": {"fps": 8, **frames},
               "augment": {"flip": 0, "jitter_p": 0, "grey_p": 0, "blur_p": 0, "ratio": [1, 1]}},
        objective={"name": "simclr", "head": {"hidden": [64], "dim": 32}, "temperature": 0.2},
        optimizer={"name": "adamw", "lr": rate, "warmup_images": images // 10, "weight_decay": 1e-4},
        train={"batch": 32, "images": images, "checkpoint_every": 1000, "log_every": 10},
    )  # fmt: skip
    with joined():
        assert start(config, run, say=lambda _: None)
        first, last = (
            evaluate_knn(run, str(data), "folder", str(test), k=10, temperature=0.07, untrained=untrained)
            for untrained in (True, False)
        )
    assert first is not None
    assert last is not None
    return first["accuracy"], last["accuracy"]


CLIPS = {"count": 4, "joined": True}


@pytest.mark.slow
@pytest.mark.learns
def test_a_trunk_of_clips_learns_the_way_that_a_disc_moves(sets: tuple[Path, Path], tmp_path: Path) -> None:
    """From two clips of each video, at other places and times, without labels."""
    before, after = accuracies(sets, tmp_path / "run", CLIPS, {"count": 2, "size": 24}, "tiny_clips", 0.1, 3200)
    assert after > 0.85
    assert after > before + 0.1


@pytest.mark.slow
@pytest.mark.learns
def test_single_frames_do_not_tell_it(sets: tuple[Path, Path], tmp_path: Path) -> None:
    """Two frames of each video as two views, through the same trunk for images: chance is one in four."""
    _, after = accuracies(sets, tmp_path / "run", {"count": 2}, {"count": 1, "size": 24}, "tiny", 0.1, 3200)
    assert abs(after - 1 / len(WAYS)) < 0.12
