"""The options of `seer-pipe export`, and what its readers say of a folder that was changed since."""

import hashlib
import importlib.util
import shutil
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from seer_pipe import config as settings
from seer_pipe.cli import app
from seer_pipe.errors import UserError
from seer_pipe.evaluate.subject import load_run
from seer_pipe.export import load_backbone
from seer_pipe.export.onnx import run_onnx
from seer_pipe.export.origin import origin
from seer_pipe.export.weights import write_weights
from seer_pipe.models import build_trunk
from seer_pipe.run import start
from seer_pipe.train.events import read_events
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


def test_a_run_copied_elsewhere_is_exported_without_its_data(
    pictures: Path, run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only what looks at images asks for them, and takes --data."""
    gone = shutil.copytree(pictures, tmp_path / "gone")
    monkeypatch.chdir(tmp_path)
    assert train(small("gone", train={"images": 8}), tmp_path / "here", say=lambda _: None)
    assert settings.load(tmp_path / "here" / "config.yaml").data.path == str(gone)
    copied = shutil.move(tmp_path / "here", tmp_path / "laptop")
    shutil.rmtree(gone)
    call("export", copied, "--out", tmp_path / "plain")
    assert "24 images without labels" in (tmp_path / "plain" / "README.md").read_text()
    with pytest.raises(UserError, match=rf"{gone}.*--data says where the run's shard set is now"):
        call("export", copied, "--out", tmp_path / "whole", "--recalibrate")
    with pytest.raises(UserError, match="--data says where"):
        call("atlas", copied, "--out", tmp_path / "atlas")
    call("export", copied, "--out", tmp_path / "whole", "--recalibrate", "--data", pictures)
    with pytest.raises(UserError, match="without --recalibrate looks at no images"):
        call("export", copied, "--out", tmp_path / "other", "--data", pictures)


@pytest.mark.slow
def test_a_trunk_with_layer_norm_has_no_statistics_to_recalibrate(pictures: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert train(small(pictures, model={"norm": "layer"}, train={"images": 8}), run, say=lambda _: None)
    with pytest.raises(UserError, match=r"--recalibrate: this trunk has LayerNorm \(model\.norm\)"):
        call("export", run, "--out", tmp_path / "whole", "--recalibrate")
    call("export", run, "--out", tmp_path / "plain")
    trunk, back = load_run(run)[0].trunk, load_backbone(tmp_path / "plain")
    assert back.norm_kind == "layer"
    assert all(torch.equal(back.state_dict()[name], value) for name, value in trunk.state_dict().items())
    with safe_open(tmp_path / "plain" / "model.safetensors", "pt") as file:
        assert file.metadata().items() >= {"norm": "layer", "trunk": "regnety_200mf"}.items()
        assert "batch_norm" not in file.metadata()
    assert "regnety_200mf with LayerNorm for BatchNorm" in (tmp_path / "plain" / "README.md").read_text()
    with pytest.raises(UserError, match=r"missing \(.*running_mean"):
        assert start(small(pictures, train={"images": 8}), tmp_path / "other", say=lambda _: None,
                     init_from=tmp_path / "plain")  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("method", [None, "swav"])
def test_the_card_says_what_a_run_began_from_and_what_was_changed(
    pictures: Path, tmp_path: Path, method: str | None
) -> None:
    """Weights that may have seen labels are not called self-supervised, nor what is made of them."""
    trunk = build_trunk("regnety_200mf")
    about = {} if method is None else {"method": method, "licence": "mit"}
    write_weights(tmp_path / "given.safetensors", trunk.state_dict(), about)
    sha256 = hashlib.sha256((tmp_path / "given.safetensors").read_bytes()).hexdigest()
    run, first, longer = tmp_path / "run", *(small(pictures, train={"images": images}) for images in (8, 16))
    assert start(first, run, say=lambda _: None, init_from=tmp_path / "given.safetensors")
    assert start(longer, run, say=lambda _: None, on_purpose={"train.images"})
    kept = {"name": "given.safetensors", "sha256": sha256, "licence": about.get("licence"), "method": method}
    assert settings.read_record(run / "config.yaml").init == kept
    assert read_events(run)[0]["init"] == kept
    call("export", run, "--out", tmp_path / "out")
    call("init", tmp_path / "given.safetensors", "--out", tmp_path / "made")
    call("init", tmp_path / "out", "--out", tmp_path / "again")
    for folder in ("out", "made", "again"):
        card = (tmp_path / folder / "README.md").read_text()
        assert ("self-supervised" in card.split("---")[1]) == (method is not None), folder
    card = (tmp_path / "out" / "README.md").read_text()
    assert "on images without labels, from the weights of given.safetensors" in card
    assert f"| initial_weights_sha256 | {sha256} |" in card
    assert f"| initial_weights_licence | {about.get('licence', 'unknown')} |" in card
    assert "- after step 1 (8 images): `train.images` 8 -> 16" in card
    made = (tmp_path / "made" / "README.md").read_text()
    assert f"| source_sha256 | {sha256} |" in made
    assert ("license: mit" in made.split("---")[1]) == (method is not None)


def test_the_licence_of_a_folder_is_that_of_its_card(tmp_path: Path) -> None:
    write_weights(tmp_path / "model.safetensors", {"weight": torch.zeros(1)}, {})
    assert origin(tmp_path).licence is None
    (tmp_path / "README.md").write_text("---\nlicense: apache-2.0\n---\n\nlicense: not this\n")
    assert origin(tmp_path).licence == "apache-2.0"
    with pytest.raises(UserError, match="no such file or folder of weights"):
        origin(tmp_path / "none")
