"""What a start may change of the run in its folder: all before the first step, some on purpose later, and why not."""

import os
import signal
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from seer_pipe import config as settings
from seer_pipe.changes import differences, next_epoch
from seer_pipe.errors import UserError
from seer_pipe.objectives.swav.settings import SwavSettings
from seer_pipe.train.events import read_events
from seer_pipe.train.loop import train
from seer_pipe.train.telemetry import read_metrics
from seer_pipe.train.trainer import Hooks
from tests.train.helpers import Ranks, assert_same_weights, losses, make_pictures, small

CONSTANT = {"schedule": "constant", "warmup_images": 8}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), [13, 0, 1, 20])


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of two steps, which the tests are refused to change."""
    run = tmp_path_factory.mktemp("finished") / "run"
    assert train(small(pictures, train={"images": 16}), run, quiet)
    return run


def quiet(_line: str) -> None: ...


def stop_before_the_first_step(config: settings.Config, run: Path, init: dict[str, str | None] | None = None) -> None:
    """Begin the run, and ask it to stop as soon as its start is recorded: it leaves the checkpoint of step 0."""

    def ask(event: Mapping[str, Any]) -> None:
        if event["event"] == "start":
            signal.raise_signal(signal.SIGUSR1)

    assert not train(config, run, quiet, hooks=Hooks(init=init, on_event=ask))


def held(run: Path) -> dict[str, bytes]:
    return {str(file.relative_to(run)): file.read_bytes() for file in run.rglob("*") if file.is_file()}


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"optimizer": {"lr": 0.5}}, r"optimizer\.lr \(1\.0 in the run, 0\.5 now\).*--change optimizer\.lr=0\.5"),
        ({"seed": 3}, r"cannot change within a run: seed \(0 .* 3 now\): the order of the images"),
        ({"model": {"name": "regnety_400mf"}}, r"model\.name .*: the checkpoints hold the weights of this network"),
        ({"data": {"path": "OTHER"}}, "another shard set"),
        ({"train": {"checkpoints": "OTHER"}}, "its checkpoints are in .*: move them there"),
    ],
    ids=["a rate", "the seed", "the trunk", "another shard set", "an empty place for checkpoints"],
)
def test_a_refused_resume_writes_nothing(
    pictures: Path, finished: Path, tmp_path: Path, sections: dict[str, Any], message: str
) -> None:
    other = make_pictures(tmp_path / "other", [14, 0, 1, 20])
    tree = small(pictures, train={"images": 16}).model_dump(mode="json")
    for section, changes in sections.items():
        plain = {k: str(other) if v == "OTHER" else v for k, v in changes.items()} if section != "seed" else changes
        tree[section] = tree[section] | plain if section != "seed" else plain
    before = held(finished)
    with pytest.raises(UserError, match=message):
        train(settings.parse(tree, "test"), finished, quiet)
    assert held(finished) == before


def test_a_refused_resume_ends_all_ranks(pictures: Path, finished: Path) -> None:
    before = held(finished)
    start = Ranks(small(pictures, train={"images": 16}, optimizer={"lr": 0.5}), finished, world=2)
    assert start.ends() == [2, 2]
    assert held(finished) == before


@pytest.mark.slow
def test_before_the_first_step_a_corrected_setting_is_taken(pictures: Path, tmp_path: Path) -> None:
    """As after a start that ran out of memory, whose first checkpoint is of another network and batch."""
    wrong = small(pictures, model={"name": "regnety_400mf"}, train={"images": 32, "batch": 16})
    right = small(pictures, train={"images": 16})
    run, said = tmp_path / "run", []
    stop_before_the_first_step(wrong, run)
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step-00000000"]
    assert train(right, run, said.append)
    (line,) = [line for line in said if line.startswith("no step was finished")]
    assert "model.name (regnety_400mf in the run, regnety_200mf now)" in line
    assert "train.batch (16 in the run, 8 now)" in line
    assert train(right, tmp_path / "straight", quiet)
    assert_same_weights(run, tmp_path / "straight")
    assert settings.load(run / "config.yaml") == right


@pytest.mark.slow
def test_a_longer_run_under_a_constant_schedule_is_exact(pictures: Path, tmp_path: Path) -> None:
    short, long = (small(pictures, optimizer=CONSTANT, train={"images": images}) for images in (16, 40))
    assert train(long, tmp_path / "straight", quiet)
    assert train(short, tmp_path / "extended", quiet)
    assert train(long, tmp_path / "extended", quiet)
    assert_same_weights(tmp_path / "straight", tmp_path / "extended")
    assert losses(tmp_path / "straight") == losses(tmp_path / "extended")


def test_the_length_is_not_free_where_any_schedule_ends_with_the_run(monkeypatch: pytest.MonkeyPatch) -> None:
    def differing(**optimizer: Any) -> list[str]:
        pair = [small("unused", optimizer=CONSTANT | optimizer, train={"images": images}) for images in (16, 40)]
        return [difference.key for difference in differences(*pair)]

    assert differing() == []
    assert differing(schedule="cosine") == differing(final_weight_decay=0.1) == ["train.images"]
    monkeypatch.setattr(SwavSettings, "knows_its_end", True)
    assert differing() == ["train.images"]


@pytest.mark.slow
def test_rate_batch_and_length_are_changed_on_purpose(pictures: Path, tmp_path: Path) -> None:
    """Recorded, counted in images, with data of a new epoch; and resumed exactly after it was stopped again."""
    before = small(pictures, train={"images": 24})
    keys = {"train.batch", "train.images", "optimizer.lr"}
    after = small(pictures, train={"images": 100, "batch": 16, "checkpoint_every": 1}, optimizer={"lr": 0.5})
    said: list[str] = []

    def ask(line: str) -> None:
        if line.startswith("step 5/"):
            os.kill(os.getpid(), signal.SIGTERM)

    for name in ("straight", "stopped"):
        assert train(before, tmp_path / name, quiet)
    assert train(after, tmp_path / "straight", said.append, on_purpose=keys)
    assert not train(after, tmp_path / "stopped", ask, on_purpose=keys)
    assert train(after, tmp_path / "stopped", quiet)
    assert_same_weights(tmp_path / "straight", tmp_path / "stopped")

    run = tmp_path / "straight"
    assert [(row["step"], row["images"]) for row in read_metrics(run)] == [
        *[(step, 8 * step) for step in (1, 2, 3)], *[(step, 24 + 16 * (step - 3)) for step in range(4, 8)],
    ]  # fmt: skip
    (event,) = [event for event in read_events(run) if event["event"] == "change"]
    changed = {"optimizer.lr": [1.0, 0.5], "train.batch": [8, 16], "train.images": [24, 100]}
    assert (event["step"], event["images"], event["settings"]) == (3, 24, changed)
    # 24 images are the end of the old cosine; the new one is where it would be had it been so long from the start
    assert event["rates"][0] == pytest.approx(0.001 * 8 / 256)
    assert event["rates"][1] == pytest.approx(next(row["lr"] for row in read_metrics(run) if row["step"] == 4))
    assert f"learning rate {event['rates'][0]:.4g} before, {event['rates'][1]:.4g} now" in "\n".join(said)
    kept = yaml.safe_load((run / "config.yaml").read_text())
    assert kept["changes"] == [{"step": 3, "images": 24, "settings": changed}]
    assert (kept["derived"]["steps"], kept["derived"]["images"]) == (7, 88)
    assert settings.load(run / "config.yaml") == after
    with pytest.raises(UserError, match=r"train\.batch \(16 in the run, 8 now\)"):
        train(before, run, quiet)


@pytest.mark.slow
def test_other_first_weights_are_refused_once_steps_are_finished(
    pictures: Path, finished: Path, tmp_path: Path
) -> None:
    config, run = small(pictures, train={"images": 16}), tmp_path / "run"
    one, other = ({"name": name, "sha256": 64 * name, "licence": None, "method": None} for name in "ab")
    with pytest.raises(UserError, match="was begun from no given weights, and not from this a"):
        train(config, finished, quiet, hooks=Hooks(init=one))
    stop_before_the_first_step(config, run, init=one)
    assert train(config, run, quiet, hooks=Hooks(init=other))  # no step was finished
    assert settings.read_record(run / "config.yaml").init == other
    assert [event["init"]["name"] for event in read_events(run) if event["event"] == "start"] == ["a", "b"]
    with pytest.raises(UserError, match=f"was begun from b, and not from this a .SHA-256 {64 * 'a'}"):
        train(config, run, quiet, hooks=Hooks(init=one))
    assert train(config, run, quiet, hooks=Hooks(init=other))
    assert train(config, run, quiet)
    assert settings.read_record(run / "config.yaml").init == other


@given(
    steps=st.integers(0, 10_000), then=st.integers(1, 4096), now=st.integers(1, 4096), more=st.integers(0, 10**6)
)  # fmt: skip
def test_another_batch_begins_a_pass_that_was_not_begun(steps: int, then: int, now: int, more: int) -> None:
    images = max(then, now) + more
    before, after = images // then, images // now  # batches of an epoch
    place = next_epoch(steps, then, now, images)
    assert place >= steps  # as images that were replaced are told by their batch, which a resume cuts back to
    assert place % after == 0
    assert place // after >= steps / before
    if steps:
        assert place // after > (steps - 1) // before


@given(st.integers(0, 9), st.integers(34, 5000))
def test_steps_and_images_follow_from_any_place_of_a_run(finished: int, images_in_set: int) -> None:
    for train_section in ({"images": 96}, {"images": None, "epochs": 2.5}):
        config = small("none", train=train_section)
        assert settings.derive(config, images_in_set, 1, (finished, 8 * finished)) == settings.derive(
            config, images_in_set
        )


@pytest.mark.slow
def test_before_the_first_step_another_shard_set_is_taken(pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    stop_before_the_first_step(small(pictures), run)
    assert train(small(make_pictures(tmp_path / "other", [20]), train={"images": 8}), run, quiet)
    assert read_metrics(run)[-1]["images"] == 8
