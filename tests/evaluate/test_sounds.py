"""Sounds are classified in folds: those of ESC-50's table, or drawn ones; and what is wrong with them is said."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from typer.testing import CliRunner

from seer_pipe.cli import app
from seer_pipe.config import Sound
from seer_pipe.data.sound import spectrograms
from seer_pipe.errors import UserError
from seer_pipe.evaluate.knn import knn_accuracy
from seer_pipe.evaluate.labels import Labelled
from seer_pipe.evaluate.pictures import FilePictures
from seer_pipe.evaluate.sounds import FOLDS, WINDOWS, evaluate_sounds, open_sounds, windows
from seer_pipe.evaluate.subject import load_run
from tests.media import flac, tone, write_pairs
from tests.objectives.tones import GATE, gate

HERTZ = {"bird": 2500.0, "dog": 400.0, "rain": 900.0}


def sound(kind: str, number: int, seconds: float = 0.5) -> bytes:
    """A tone in noise."""
    wave = tone(HERTZ[kind] * (1 + number / 100), seconds)
    return flac((wave + np.random.default_rng(number).normal(0, 0.02, len(wave))).astype(np.float32))


def evaluate(run: Path, data: Path, labels: str | None = None, *, untrained: bool = True) -> dict[str, Any]:
    found = evaluate_sounds(run, str(data), labels, k=3, temperature=0.07, seed=0, untrained=untrained)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of a network that hears, and was not trained."""
    folder = tmp_path_factory.mktemp("runs") / "hears"
    folder.mkdir()
    (folder / "config.yaml").write_text(yaml.safe_dump(gate(Path("unused")).model_dump(mode="json")))
    return folder


@pytest.fixture(scope="module")
def classes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder class/sound, 5 of each."""
    folder = tmp_path_factory.mktemp("classes")
    for kind in HERTZ:
        (folder / kind).mkdir()
        for number in range(5):
            (folder / kind / f"{number}.flac").write_bytes(sound(kind, number))
    return folder


def esc50(folder: Path, per_fold: int = 1) -> Path:
    """As its repository lies in a folder; every file of fold 5 is damaged but one, and one is not there."""
    rows = []
    for kind in HERTZ:
        for number in range(FOLDS * per_fold):
            name, fold = f"{number % FOLDS + 1}-{kind}-{number}.flac", number % FOLDS + 1
            rows.append((name, fold, list(HERTZ).index(kind), kind))
            (folder / "audio").mkdir(exist_ok=True)
            data = sound(kind, number)
            if (kind, fold) == ("dog", 5):
                data = b"no sound at all"
            if (kind, fold) != ("rain", 5):
                (folder / "audio" / name).write_bytes(data)
    (folder / "meta").mkdir()
    with (folder / "meta/esc50.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("filename", "fold", "target", "category"), *rows])
    return folder


def test_the_folds_are_those_of_esc50_and_what_cannot_be_heard_is_counted(run: Path, tmp_path: Path) -> None:
    data = esc50(tmp_path)
    sounds, folds = open_sounds(str(data), None, seed=0)
    assert sounds.classes == ["bird", "dog", "rain"]
    assert folds.tolist() == list(range(FOLDS)) * 3
    found = evaluate(run, data)
    assert (found["images"], found["left_out"]["unreadable"], found["classes"]) == (13, 2, 3)
    assert len(found["folds"]) == FOLDS
    assert found["accuracy"] == pytest.approx(np.mean(found["folds"]))
    assert min(found["accuracy"], found["accuracy_knn"]) > 0.8  # tones are told apart by drawn weights, too
    assert json.loads((run / "evaluation/sounds-untrained-0.json").read_text()) == found


def test_features_are_means_over_windows_and_each_fold_is_asked_of_the_others(run: Path, classes: Path) -> None:
    """Nearest neighbours once more, without batches, threads and files; the statistics are those of all windows."""
    _, config, network = load_run(run, untrained=True)
    trunk = config.objective.sound_trunk(network.head)
    sounds, folds = open_sounds(str(classes), None, seed=0)
    waves = [tone(HERTZ[kind] * (1 + n / 100), 0.5) + np.random.default_rng(n).normal(0, 0.02, 8000)
             for kind in sounds.classes for n in range(5)]  # fmt: skip
    levels = [np.round(wave.astype(np.float32) * 32767).astype(np.int16) / np.float32(32768) for wave in waves]
    cut = [torch.from_numpy(windows(wave.astype(np.float32), GATE)) for wave in levels]
    heard = spectrograms(torch.cat(cut), GATE)
    trunk.train()
    for norm in trunk.modules():
        if isinstance(norm, torch.nn.BatchNorm2d):
            norm.momentum = 1.0
    with torch.no_grad():
        features = torch.stack([part.mean(0) for part in trunk(heard).split([len(one) for one in cut])])
    y, fold = torch.from_numpy(sounds.labels), torch.from_numpy(folds)
    expected = [
        knn_accuracy(features[fold == i], y[fold == i], features[fold != i], y[fold != i], k=3) for i in range(FOLDS)
    ]
    assert evaluate(run, classes)["accuracy_knn"] == pytest.approx(np.mean(expected))


def test_a_shard_set_gives_the_same_as_its_files(run: Path, classes: Path, tmp_path: Path) -> None:
    files = sorted(classes.rglob("*.flac"))
    members = [(str(file.relative_to(classes)), {"flac": file.read_bytes(), "json": b"{}"}, 0, 0) for file in files]
    data = write_pairs(tmp_path / "set", members, shards=2, media="audio")
    one, other = evaluate(run, classes), evaluate(run, data, "folder")
    assert one | {"data": ""} == other | {"data": ""}


@given(st.lists(st.integers(2, 30), min_size=2, max_size=5), st.integers(0, 3))
def test_drawn_folds_share_out_each_class_evenly(counts: list[int], seed: int) -> None:
    label_of = np.repeat(np.arange(len(counts)), counts)
    files = FilePictures([Path()] * len(label_of), "nowhere")
    drawn = Labelled(files, np.arange(len(label_of)), label_of, [str(number) for number in range(len(counts))])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("seer_pipe.evaluate.sounds.open_labelled", lambda *_args, **_options: drawn)
        _, folds = open_sounds("nowhere", None, seed)
    for rows in (folds, *(folds[label_of == label] for label in range(len(counts)))):
        sizes = np.bincount(rows, minlength=FOLDS)
        assert sizes.max() - sizes.min() <= 1


@given(st.floats(0.01, 30), st.sampled_from([0.2, 1.0, 2.0]))
def test_windows_go_from_the_beginning_to_the_end(seconds: float, each: float) -> None:
    given = Sound(spectrum="log_mel", seconds=each)
    wave = np.arange(1, round(seconds * given.rate) + 1, dtype=np.float32)
    cut = windows(wave, given)
    assert cut.shape[1] == round(each * given.rate)
    assert 1 <= len(cut) <= WINDOWS
    assert cut[0, 0] == 1
    if len(wave) >= cut.shape[1]:
        assert cut[-1, -1] == len(wave)
        steps = np.diff(cut[:, 0])
        assert len(cut) == WINDOWS or (steps <= cut.shape[1] / 2 + 1).all()
    else:
        assert len(cut) == 1
        assert not cut[0, len(wave) :].any()


def test_what_is_wrong_is_said(run: Path, classes: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="neither a shard set nor a folder of class/image"):
        evaluate(run, tmp_path)
    for kind in ("one", "two"):
        (tmp_path / kind).mkdir()
        (tmp_path / kind / "a.wav").write_bytes(sound("dog", 0))
    with pytest.raises(UserError, match="class 'one' has no sound that can be used outside of fold 1; each class"):
        evaluate(run, tmp_path)
    for kind in ("one", "two"):
        (tmp_path / kind / "a.wav").write_bytes(b"")
    with pytest.raises(UserError, match="none of its sounds can be used"):
        evaluate(run, tmp_path)
    (tmp_path / "meta").mkdir()
    (tmp_path / "meta/esc50.csv").write_text("filename,fold,category\nhere.wav,1,dog\n")
    with pytest.raises(UserError, match=r"audio/here\.wav: no such file, and none of the others"):
        evaluate(run, tmp_path)
    with pytest.raises(UserError, match="no checkpoint yet"):
        evaluate(run, classes, untrained=False)


def test_the_command(run: Path, classes: Path) -> None:
    asked = ["eval", "sounds", str(run), "--data", str(classes), "--untrained", "--json", "--k", "3"]
    result = CliRunner().invoke(app, asked)
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == json.loads((run / "evaluation/sounds-untrained-0.json").read_text())
