"""The options of `seer-pipe export`, and what its readers say of a folder that was changed since."""

import importlib.util
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from seer_pipe.cli import app
from seer_pipe.errors import UserError
from seer_pipe.evaluate.subject import load_run
from seer_pipe.export import load_backbone
from seer_pipe.export.onnx import run_onnx
from seer_pipe.train.loop import train
from tests.train.helpers import make_pictures, small


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_pictures(tmp_path_factory.mktemp("pictures"), [24])


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert train(small(pictures, train={"images": 16}), folder, say=lambda _: None)
    return folder


def call(*arguments: object) -> None:
    """The command in this process; what ends it is raised."""
    CliRunner().invoke(app, list(map(str, arguments)), catch_exceptions=False)


def test_recalibrated_statistics_are_those_of_whole_images_and_nothing_else_changes(run: Path, tmp_path: Path) -> None:
    call("export", run, "--out", tmp_path / "plain")
    call("export", run, "--out", tmp_path / "whole", "--recalibrate")
    plain, whole = (load_file(tmp_path / name / "model.safetensors") for name in ("plain", "whole"))
    changed = {name.rsplit(".", 1)[1] for name in plain if not torch.equal(plain[name], whole[name])}
    assert changed == {"running_mean", "running_var", "num_batches_tracked"}
    trunk = load_run(run)[0].trunk
    assert all(torch.equal(plain[name], value) for name, value in trunk.state_dict().items())
    assert all("num_batches" not in name or value == 1 for name, value in whole.items())  # one batch holds them all
    with safe_open(tmp_path / "whole" / "model.safetensors", "pt") as file:
        assert file.metadata()["batch_norm"] == "recalibrated"
    said = "BatchNorm statistics are those of whole images."
    assert said in (tmp_path / "whole" / "README.md").read_text()
    assert said not in (tmp_path / "plain" / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.skipif(not importlib.util.find_spec("onnxscript"), reason="needs seer-pipe[onnx]")
def test_onnx_beside_another_librarys_weights_gives_their_features(run: Path, tmp_path: Path) -> None:
    call("export", run, "--out", tmp_path / "out", "--format", "timm", "--onnx")
    images = torch.randn(3, 3, 40, 56, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        expected = load_backbone(tmp_path / "out")(images)
    assert torch.allclose(run_onnx(tmp_path / "out" / "model.onnx", images), expected, atol=1e-4 * expected.abs().max())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (({}, {"fc.weight": torch.zeros(10, 368)}), r"holds a head too \(fc.weight\)"),
        (({"trunk": "regnety_400mf"}, {}), r"not the weights of regnety_400mf .*missing .*of another shape"),
        (({}, {"adapter.weight": torch.zeros(1)}), r"1 unexpected \(adapter.weight\)"),
    ],
    ids=["a head", "another trunk", "something else"],
)
def test_a_changed_backbone_is_told_from_the_one_exported(run: Path, pictures: Path, tmp_path: Path, change, message):
    call("export", run, "--out", tmp_path / "out")
    file = tmp_path / "out" / "model.safetensors"
    with safe_open(file, "pt") as opened:
        about = opened.metadata()
    save_file({**load_file(file), **change[1]}, file, {**about, **change[0]})
    with pytest.raises(UserError, match=message):
        call("eval", "knn", tmp_path / "out", "--data", pictures, "--labels", "folder")
    with pytest.raises(UserError, match=message):
        call("embed", tmp_path / "out", pictures, "--out", tmp_path / "e.parquet")
