"""Exports into the real torchvision, timm and Transformers, by the lines their own model cards give."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from torch import nn

from seer_pipe.errors import UserError
from seer_pipe.export import FORMATS, Preprocessing, export_backbone, load_backbone
from seer_pipe.models import build_trunk, trunk_names
from tests.train.test_step import TinyTrunk

METADATA = {"images_seen": "8192", "step": "2", "method": "swav"}


@pytest.fixture(scope="module")
def transformers(torchvision):
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def timm(torchvision):
    return pytest.importorskip("timm")


def trained(name: str, **options):
    """A trunk whose every tensor has values of its own, so that no two can be swapped unseen."""
    generator = torch.Generator().manual_seed(1)
    trunk = build_trunk(name, **options)
    for module in trunk.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d | nn.GroupNorm):
            for name, tensor in module.state_dict().items():
                if name in ("running_mean", "bias"):
                    nn.init.normal_(tensor, 0, 0.1, generator=generator)
                if name in ("running_var", "weight"):
                    nn.init.uniform_(tensor, 0.5, 1.0, generator=generator)
    return trunk


def export(folder: Path, name: str, format: str = "torchvision", **options):
    """(what the trunk makes of some images, these images) after an export to ``folder``."""
    trunk = trained(name, **options)
    prepared = Preprocessing(frames=(4, 8.0) if trunk.takes_clips else None)
    images = torch.randn(2, *replace(prepared, size=64).shape, generator=torch.Generator().manual_seed(2))
    export_backbone(trunk, folder, format=format, images=images, metadata=METADATA, preprocessing=prepared)
    with torch.no_grad():
        return trunk.eval()(images), images


def code_of(folder: Path, section: str) -> list[str]:
    """The Python in a section of the model card."""
    card = (folder / "README.md").read_text()
    text = card.split(f"\n## {section}\n")[1].split("\n## ")[0]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def run_card(folder: Path, monkeypatch) -> nn.Module:
    """The model that the card's snippet makes when it is run in the folder."""
    snippet = code_of(folder, "Loading")[0]
    monkeypatch.chdir(folder)
    scope: dict = {}
    exec(snippet, scope)
    return scope["model"].eval()


def same(found: torch.Tensor, expected: torch.Tensor) -> bool:
    return bool((found - expected).abs().max() <= 1e-5 * expected.abs().max().clamp(min=1))


@torch.no_grad()
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("regnety_400mf", {}),
        ("regnety_200mf", {}),
        ("resnext50_32x4d", {}),
        ("resnet18", {"stem": "small"}),
        ("regnety_400mf", {"norm": "layer"}),
        ("regnety_200mf", {"norm": "layer"}),
        ("resnet18", {"stem": "small", "norm": "layer"}),
        ("r2plus1d_18", {}),
        ("r2plus1d_18", {"norm": "layer"}),
    ],
)
def test_torchvision_loads_the_export(torchvision, tmp_path, monkeypatch, name, options):
    expected, images = export(tmp_path / "out", name, **options)
    assert same(run_card(tmp_path / "out", monkeypatch)(images), expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["regnety_400mf", "regnety_800mf", "resnet18", "resnext50_32x4d"])
def test_timm_and_transformers_load_the_timm_export(timm, transformers, tmp_path, monkeypatch, name):
    expected, images = export(tmp_path / "out", name, "timm")
    assert same(run_card(tmp_path / "out", monkeypatch)(images), expected)
    source = f"local-dir:{tmp_path / 'out'}"
    assert timm.create_model(source, pretrained=True, num_classes=10)(images).shape == (2, 10)
    maps = timm.create_model(source, pretrained=True, features_only=True).eval()(images)
    assert same(maps[-1].mean((2, 3)), expected)
    wrapped = transformers.AutoModel.from_pretrained(tmp_path / "out").eval()
    assert same(wrapped(images).pooler_output, expected)


@torch.no_grad()
@pytest.mark.parametrize("name", ["regnety_400mf", "regnety_800mf", "resnet18", "resnet50"])
def test_transformers_loads_the_native_export(transformers, tmp_path, monkeypatch, name):
    expected, images = export(tmp_path / "out", name, "huggingface")
    assert same(run_card(tmp_path / "out", monkeypatch)(images).pooler_output.flatten(1), expected)
    _, report = transformers.AutoModel.from_pretrained(tmp_path / "out", output_loading_info=True)
    assert not any(report[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    processor = transformers.AutoImageProcessor.from_pretrained(tmp_path / "out")
    assert processor.image_mean == pytest.approx(Preprocessing().mean)
    assert processor.image_std == pytest.approx(Preprocessing().std)


def shapes(model: nn.Module) -> dict[str, torch.Size]:
    return {key: tensor.shape for key, tensor in model.state_dict().items()}


def renamed_shapes(name: str, library: str) -> tuple[dict[str, torch.Size], dict]:
    with torch.device("meta"):
        trunk = build_trunk(name)
    names = trunk.names_in(library)
    config = FORMATS[library].files(trunk, Preprocessing())["config.json"]
    return {names[key]: shape for key, shape in shapes(trunk).items()}, config


ELSEWHERE = [name for name in trunk_names() if name not in ("conv2d_10", "r2plus1d_18")]  # which timm does not have


@pytest.mark.parametrize("name", [name for name in ELSEWHERE if name != "regnety_10b"])
def test_every_trunk_has_timms_names_and_shapes(timm, name):
    ours, config = renamed_shapes(name, "timm")
    with torch.device("meta"):
        theirs = timm.create_model(config["architecture"], num_classes=0)
    assert ours == shapes(theirs)
    assert theirs.num_features == config["num_features"]


@pytest.mark.parametrize("name", [name for name in ELSEWHERE if "next" not in name and "wide" not in name])
def test_every_trunk_has_transformers_names_and_shapes(transformers, name):
    ours, config = renamed_shapes(name, "huggingface")
    with torch.device("meta"):
        theirs = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(**config))
    assert ours == shapes(theirs)


def test_detectron2_export_has_its_names_and_holds_tensors_alone(tmp_path):
    export(tmp_path / "regnet", "regnety_200mf", "detectron2")
    export(tmp_path / "resnet", "resnet18", "detectron2")
    regnet = torch.load(tmp_path / "regnet" / "model.pth", weights_only=True)["model"]
    resnet = torch.load(tmp_path / "resnet" / "model.pth", weights_only=True)["model"]
    assert {
        "stem.conv.weight",
        "s1.b1.proj.weight",
        "s1.b1.bn.bias",
        "s4.b7.f.se.f_ex.2.bias",
        "s4.b7.f.c_bn.weight",
    } <= set(regnet)
    assert {"stem.conv1.norm.bias", "res2.0.conv1.weight", "res5.0.shortcut.norm.running_mean"} <= set(resnet)


def test_full_export_keeps_the_head(tmp_path):
    trunk, head = trained("regnety_200mf"), nn.Linear(368, 16)
    images = torch.randn(1, 3, 64, 64)
    export_backbone(trunk, tmp_path / "out", format="full", images=images, metadata=METADATA, head=head)
    with safe_open(tmp_path / "out" / "model.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("head.weight"), head.weight)
        assert torch.equal(file.get_tensor("trunk.stem.0.weight"), trunk.stem[0].weight)
    assert load_backbone(tmp_path / "out").name == "regnety_200mf"


@pytest.mark.parametrize("format", FORMATS)
def test_what_was_exported_loads_back_bit_for_bit(tmp_path, format):
    trunk = trained("regnety_200mf")
    head = nn.Linear(1, 1) if format == "full" else None
    images = torch.randn(1, 3, 64, 64)
    export_backbone(trunk, tmp_path / "out", format=format, images=images, metadata=METADATA, head=head)
    back = load_backbone(tmp_path / "out")
    assert trunk.training
    assert not back.training
    assert all(torch.equal(back.state_dict()[key], tensor) for key, tensor in trunk.state_dict().items())


def test_the_small_stem_comes_back(tmp_path):
    export(tmp_path / "out", "resnet18", stem="small")
    assert load_backbone(tmp_path / "out").stem_kind == "small"


def test_folder_says_what_it_holds(tmp_path):
    trunk = trained("resnet18")
    export_backbone(
        trunk,
        tmp_path / "new" / "out",
        images=torch.randn(1, 3, 64, 64),
        metadata=METADATA,
        preprocessing=Preprocessing(size=160),
        sections={"Data": "A thousand photographs."},
    )
    folder = tmp_path / "new" / "out"
    assert {file.name for file in folder.iterdir()} == {"model.safetensors", "config.json", "README.md"}
    assert list(folder.parent.iterdir()) == [folder]
    with safe_open(folder / "model.safetensors", "pt") as file:
        assert file.metadata().items() >= {"format": "pt", "trunk": "resnet18", "size": "160", **METADATA}.items()
        assert all(file.get_tensor(key).dtype in (torch.float32, torch.int64) for key in file.keys())  # noqa: SIM118
    assert json.loads((folder / "config.json").read_text())["input_size"] == [3, 160, 160]
    card = (folder / "README.md").read_text()
    assert "## Data\n\nA thousand photographs." in card
    assert "| images_seen | 8192 |" in card
    assert "11.18 M" in card


@pytest.mark.parametrize(
    ("name", "options", "format", "message"),
    [
        ("resnext50_32x4d", {}, "huggingface", "timm"),
        ("resnet18", {"stem": "small"}, "timm", "torchvision"),
        ("resnet18", {"stem": "small"}, "huggingface", "torchvision"),
        ("resnet18", {"stem": "small"}, "detectron2", "torchvision"),
        ("resnet18", {"norm": "layer"}, "timm", "no resnet18 with the imagenet stem and LayerNorm: .* as torchvision"),
        ("regnety_400mf", {"norm": "layer"}, "huggingface", "and LayerNorm: export it as torchvision"),
        ("resnet18", {"norm": "layer"}, "detectron2", "and LayerNorm: export it as torchvision"),
        ("resnet18", {}, "onyx", "choose torchvision"),
        ("r2plus1d_18", {}, "timm", "that library has no r2plus1d_18: export it as torchvision"),
        ("r2plus1d_18", {}, "huggingface", "that library has no r2plus1d_18: export it as torchvision"),
    ],
)
def test_a_trunk_that_a_library_cannot_hold_is_refused(tmp_path, name, options, format, message):
    with pytest.raises(UserError, match=message):
        export(tmp_path / "out", name, format, **options)
    assert not any(tmp_path.iterdir())


def test_timm_has_no_10b():
    with pytest.raises(UserError, match="torchvision"):
        renamed_shapes("regnety_10b", "timm")


def test_nothing_is_written_over_what_is_there(tmp_path):
    (tmp_path / "out").mkdir()
    with pytest.raises(UserError, match="already there"):
        export(tmp_path / "out", "regnety_200mf")


def test_an_export_that_does_not_come_back_the_same_leaves_nothing(tmp_path):
    trunk = trained("regnety_200mf")
    trunk.stem[0].weight.data[0, 0, 0, 0] = float("nan")
    with pytest.raises(RuntimeError, match="differ"):
        export_backbone(trunk, tmp_path / "out", images=torch.randn(1, 3, 64, 64), metadata=METADATA)
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_onnx_is_one_file_that_takes_any_number_and_size_of_images(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    trunk = trained("resnet18", stem="small")
    export_backbone(trunk, tmp_path / "out", images=torch.randn(1, 3, 64, 64), metadata=METADATA, onnx=True)
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "README.md", "config.json", "model.onnx", "model.safetensors"
    }  # fmt: skip
    monkeypatch.chdir(tmp_path / "out")
    scope = {"images": torch.randn(3, 3, 48, 80)}
    exec(code_of(tmp_path / "out", "ONNX")[0], scope)
    with torch.no_grad():
        assert same(torch.from_numpy(scope["features"]), trunk.eval()(scope["images"]))


@pytest.mark.slow
def test_onnx_takes_clips_of_any_length(tmp_path, monkeypatch):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    trunk, prepared = trained("r2plus1d_18"), Preprocessing(32, frames=(4, 8.0))
    clips = torch.randn(1, *prepared.shape)
    export_backbone(trunk, tmp_path / "out", images=clips, metadata=METADATA, preprocessing=prepared, onnx=True)
    monkeypatch.chdir(tmp_path / "out")
    scope = {"images": torch.randn(3, 3, 6, 32, 48)}
    exec(code_of(tmp_path / "out", "ONNX")[0], scope)
    with torch.no_grad():
        assert same(torch.from_numpy(scope["features"]), trunk.eval()(scope["images"]))


@pytest.mark.parametrize("format", sorted(set(FORMATS) - {"full"}))
def test_a_trunk_that_a_library_does_not_have_is_refused_in_a_line(tmp_path: Path, format: str) -> None:
    with pytest.raises(UserError, match=f"^{format}: that library has no tiny: export it as full$"):
        export_backbone(TinyTrunk(), tmp_path / "out", format=format, images=torch.randn(2, 3, 24, 24), metadata={})
    assert not (tmp_path / "out").exists()
