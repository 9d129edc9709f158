"""The command line as a person meets it: results, and one clear line for what is wrong."""

import ctypes
import json
import os
import re
import resource
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
import torch
from PIL import Image

from seer_pipe import config as settings
from seer_pipe.shards import FORMAT_VERSION, MANIFEST, VERSION_KEY, to_parquet
from seer_pipe.train.loop import train
from tests.command import seer_pipe as call
from tests.train.helpers import make_pictures, small

CONFIGS = Path(__file__).parents[1] / "configs"


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), [40])


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(small(pictures, train={"images": 16}), folder, say=lambda _: None)
    return folder


def test_evaluate_export_reload(run: Path, pictures: Path, tmp_path: Path) -> None:
    how = ["--data", pictures, "--labels", "folder", "--json"]
    result = json.loads(call("eval", "knn", run, *how).stdout)
    assert (result["images"], result["classes"], result["images_seen"]) == (40, 8, 16)
    untrained = json.loads(call("eval", "knn", run, *how, "--untrained").stdout)
    assert untrained["images_seen"] == 0
    assert {file.name for file in (run / "evaluation").iterdir()} == {"knn-16.json", "knn-untrained-0.json"}

    export = tmp_path / "backbone"
    done = call("export", run, "--out", export)
    assert (done.returncode, done.stdout.strip()) == (0, str(export))
    assert {"model.safetensors", "config.json", "README.md"} <= {file.name for file in export.iterdir()}
    assert f"{result['accuracy']:.4f}" in (export / "README.md").read_text()
    again = json.loads(call("eval", "knn", export, *how).stdout)
    assert again["accuracy"] == result["accuracy"]

    found = json.loads(call("eval", "retrieval", run, "--data", pictures, "--json").stdout)
    assert found["images"] == 40
    assert 0 <= found["accuracy"] <= 1
    sheet = tmp_path / "sheet.png"
    assert call("eval", "neighbours", run, "--data", pictures, "--out", sheet).returncode == 0
    with Image.open(sheet) as image:
        assert image.width > image.height > 500


def newer_set(folder: Path) -> Path:
    folder.mkdir()
    table = pa.table({"path": ["0.tar"]}).replace_schema_metadata({VERSION_KEY: str(FORMAT_VERSION + 1)})
    (folder / MANIFEST).write_bytes(to_parquet(table))
    return folder


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "nowhere.yaml"], "nowhere.yaml: no such file"),
        (["train", "RECIPE", "data.path=EMPTY"], "no shard set here"),
        (["train", "RECIPE", "data.path=NEWER"], "upgrade it"),
        (["train", "RECIPE", "train.bacth=3"], "did you mean train.batch?"),
        (["train", "RECIPE", "optimizer.lr=-1"], "optimizer.lr: "),
        (["train", "RECIPE", "data.path=PICTURES", "train.batch=32", "model.name=resnet17"], "try resnet1"),
        (
            ["train", "RECIPE", "data.path=PICTURES", "train.batch=512", "train.epochs=null", "train.images=512"],
            "fewer than a batch of 512",
        ),
        (["train", "RECIPE", "data.path=PICTURES", "train.device=cuda"], "no CUDA device"),
        (["eval", "knn", "EMPTY", "--data", "PICTURES", "--labels", "folder"], "not a run's folder"),
        (["eval", "knn", "RUN", "--data", "PICTURES", "--labels", "none.csv"], "none.csv: No such file"),
        (["export", "RUN", "--out", "EMPTY/x", "--format", "caffe"], "no export format 'caffe'"),
        (["export", "RUN", "--out", "RUN"], "already there"),
        (["quickstart", "--images", "nowhere"], "nowhere: no such folder"),
        (["quickstart", "--out", "RUN"], "left alone"),
    ],
    ids=lambda value: "-".join(map(str, value))[:40] if isinstance(value, list) else None,
)
def test_bad_input_is_one_line(arguments: list[str], message: str, run: Path, pictures: Path, tmp_path: Path) -> None:
    if not torch.cuda.is_available() or "train.device=cuda" not in arguments:
        (tmp_path / "empty").mkdir()
        words = {
            "RECIPE": CONFIGS / "quickstart.yaml", "EMPTY": tmp_path / "empty", "RUN": run, "PICTURES": pictures,
            "NEWER": newer_set(tmp_path / "newer"),
        }  # fmt: skip
        for word, path in words.items():
            arguments = [argument.replace(word, str(path)) for argument in arguments]
        if arguments[0] == "train":
            arguments += ["--out", str(tmp_path / "new")]
        done = call(*arguments)
        assert done.returncode == 2, done.stderr
        lines = done.stderr.strip().splitlines()
        assert len(lines) == 1
        assert lines[0].startswith("error: ")
        assert message in lines[0]


def test_k_is_what_was_used(run: Path, pictures: Path) -> None:
    how = ["--data", pictures, "--labels", "folder", "--json", "--untrained"]
    assert json.loads(call("eval", "knn", run, *how, "--k", 200).stdout)["k"] == 39


@pytest.mark.slow
def test_a_run_that_cannot_be_written_to(run: Path, pictures: Path, tmp_path: Path) -> None:
    """An archive's, or a colleague's."""
    there = tmp_path / "run"
    shutil.copytree(run, there, ignore=shutil.ignore_patterns("evaluation", "report"))
    done = call_without_writing(there, "eval", "retrieval", there, "--data", pictures, "--json")
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["images"] == 40
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith(f"{there}/evaluation/retrieval-16.json: ")
    assert line.endswith("the result is printed, and not kept")
    refused = call_without_writing(there, "report", there)
    assert refused.returncode == 2
    assert re.fullmatch(rf"error: {there}/report: .*--out names another folder for the page\n", refused.stderr)
    page = call_without_writing(there, "report", there, "--out", tmp_path / "page")
    assert page.stdout.strip() == str(tmp_path / "page/index.html"), page.stderr
    job = call_without_writing(there, "eval", "retrieval", there, "--data", pictures, "--cluster", "local")
    assert job.returncode == 2
    assert re.fullmatch(rf"error: {there}/jobs: .*\n", job.stderr)


def call_without_writing(folder: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """As ``call``, where nobody may write to the folder; root, whom permissions do not hold, by a mount of its own."""
    folder.chmod(0o555)
    try:
        done = call(*arguments, first=partial(mount_read_only, folder) if os.geteuid() == 0 else None)
    finally:
        folder.chmod(0o755)
    if done.returncode == 99:
        pytest.skip(f"root cannot mount here: {done.stderr.strip()}")
    return done


def mount_read_only(folder: Path) -> None:
    """For this process alone; exit code 99 where that is not possible."""
    new_mounts = 0x20000  # CLONE_NEWNS of linux/sched.h
    if ctypes.CDLL(None, use_errno=True).unshare(new_mounts):
        print(f"unshare: {os.strerror(ctypes.get_errno())}", file=sys.stderr)
        sys.exit(99)
    for how in (["--make-rprivate", "/"], ["--bind", folder, folder], ["-o", "remount,bind,ro", folder]):
        if subprocess.run(["mount", *how]).returncode:
            sys.exit(99)


def test_a_run_without_checkpoint_is_named(pictures: Path, tmp_path: Path) -> None:
    config = small(pictures)
    settings.save(config, settings.derive(config, 40), tmp_path / "config.yaml")
    done = call("export", tmp_path, "--out", tmp_path / "out")
    assert done.returncode == 2
    assert "no checkpoint yet" in done.stderr


def test_a_full_disk_ends_the_run_and_loses_nothing(pictures: Path, tmp_path: Path) -> None:
    """Files may not grow past 2 MB here, as on a disk that is full: no checkpoint, one line, and later it goes on."""
    config = small(pictures, train={"images": 32, "checkpoint_every": 2})
    settings.save(config, settings.derive(config, 40), tmp_path / "recipe.yaml")
    words = ["train", tmp_path / "recipe.yaml", "--out", tmp_path / "run"]
    full = call(*words, first=partial(resource.setrlimit, resource.RLIMIT_FSIZE, (2_000_000, 2_000_000)))
    assert full.returncode == 2, full.stderr
    assert re.match(rf"error: .*{re.escape(str(tmp_path / 'run'))}/.*File too large", full.stderr), full.stderr
    assert len(full.stderr.strip().splitlines()) == 1
    assert not list((tmp_path / "run/checkpoints").glob("*/COMMITTED.json"))
    done = call(*words)
    assert done.returncode == 0, done.stderr
    shutil.rmtree(tmp_path / "run")
