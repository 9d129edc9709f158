"""Other libraries' checkpoints into a trunk, and files that are not one."""

import argparse
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from seer_pipe.errors import UserError
from seer_pipe.export import load_backbone, load_weights
from seer_pipe.models import build_trunk


@torch.no_grad()
def loads_equal(trunk: nn.Module, file, theirs: nn.Module) -> bool:
    load_weights(trunk, file)
    images = torch.randn(2, 3, 64, 64)
    return torch.allclose(trunk.eval()(images), theirs.eval()(images), rtol=1e-5, atol=1e-5)


def test_from_torchvision_with_its_classifier(torchvision, tmp_path):
    theirs = torchvision.models.regnet_y_400mf()
    torch.save(theirs.state_dict(), tmp_path / "regnet.pth")
    trunk = build_trunk("regnety_400mf")
    loaded = load_weights(trunk, tmp_path / "regnet.pth")
    assert (loaded.library, loaded.left_out) == ("torchvision", ("fc.bias", "fc.weight"))
    theirs.fc = nn.Identity()
    assert loads_equal(trunk, tmp_path / "regnet.pth", theirs)


@pytest.mark.parametrize(("name", "theirs"), [("regnety_800mf", "regnety_008_tv"), ("resnet18", "resnet18")])
def test_from_timm(torchvision, tmp_path, name, theirs):
    timm = pytest.importorskip("timm")
    model = timm.create_model(theirs, num_classes=5)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    model.reset_classifier(0)
    assert loads_equal(build_trunk(name), tmp_path / "model.safetensors", model)


def test_from_transformers_with_its_classifier(torchvision, tmp_path):
    transformers = pytest.importorskip("transformers")
    config = transformers.RegNetConfig(hidden_sizes=[24, 56, 152, 368], depths=[1, 1, 4, 7], groups_width=8)
    model = transformers.RegNetForImageClassification(config)
    save_file(model.state_dict(), tmp_path / "model.safetensors")
    trunk = build_trunk("regnety_200mf")
    loaded = load_weights(trunk, tmp_path / "model.safetensors")
    assert loaded.library == "huggingface"
    assert torch.equal(trunk.stem[0].weight, model.regnet.embedder.embedder.convolution.weight)
    assert loaded.left_out == ("classifier.1.bias", "classifier.1.weight")


def test_from_seer(torchvision, tmp_path):
    """VISSL's names, held against timm's own reading of SEER checkpoints."""
    filter_fn = pytest.importorskip("timm.models.regnet")._filter_fn
    source, trunk = build_trunk("regnety_200mf"), build_trunk("regnety_200mf")
    vissl = {
        f"_feature_blocks.{theirs}": source.state_dict()[ours] for ours, theirs in source.names_in("vissl").items()
    }
    heads = {"0.projection_head.0.weight": torch.zeros(1)}
    content = {"classy_state_dict": {"base_model": {"model": {"trunk": vissl, "heads": heads}}}, "iteration": 7}
    torch.save(content, tmp_path / "seer.torch")
    assert load_weights(trunk, tmp_path / "seer.torch").library == "vissl"
    assert all(
        torch.equal(a, b) for a, b in zip(trunk.state_dict().values(), source.state_dict().values(), strict=True)
    )
    timms = source.names_in("timm")
    read_by_timm = filter_fn(content)
    assert {timms[key] for key in source.state_dict()} == set(read_by_timm)
    assert all(torch.equal(read_by_timm[timms[key]], tensor) for key, tensor in source.state_dict().items())


def test_from_swav(tmp_path):
    source, trunk = build_trunk("resnet50"), build_trunk("resnet50")
    heads = {"projection_head.0.weight": torch.zeros(1), "prototypes.weight": torch.zeros(1)}
    torch.save(
        {f"module.{key}": value for key, value in {**source.state_dict(), **heads}.items()}, tmp_path / "swav.pth.tar"
    )
    assert load_weights(trunk, tmp_path / "swav.pth.tar").left_out == tuple(heads)
    assert torch.equal(trunk.layer4[2].conv3.weight, source.layer4[2].conv3.weight)


@pytest.mark.slow
def test_an_export_for_another_trunk_is_named_as_such(tmp_path):
    save_file(build_trunk("resnet18").state_dict(), tmp_path / "model.safetensors")
    with pytest.raises(
        UserError, match=r"not the weights of resnet34 .*80 missing \(layer1.2.bn1.bias, .*holds resnet18 \(imag"
    ):
        load_weights(build_trunk("resnet34"), tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"1 of another shape \(conv1.weight\)"):
        load_weights(build_trunk("resnet18", stem="small"), tmp_path / "model.safetensors")


def test_what_is_over_is_an_error_unless_it_is_a_head(tmp_path):
    trunk = build_trunk("resnet18")
    save_file({**trunk.state_dict(), "adapter.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"1 unexpected \(adapter.weight\)"):
        load_weights(trunk, tmp_path / "model.safetensors")


def test_a_failed_load_changes_nothing(tmp_path):
    trunk = build_trunk("resnet18")
    before = trunk.conv1.weight.clone()
    state = {key: tensor for key, tensor in build_trunk("resnet18").state_dict().items() if key != "bn1.bias"}
    save_file(state, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"1 missing \(bn1.bias\)"):
        load_weights(trunk, tmp_path / "model.safetensors")
    assert torch.equal(trunk.conv1.weight, before)


class Payload:
    def __reduce__(self):
        return (print, ("ran",))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"state_dict": Payload()}, "holds no tensors"),
        (Payload(), "never run"),
        ([torch.zeros(1)], "list"),
        ({}, "no tensors"),
        (nn.Linear(1, 1), "never run"),
    ],
    ids=["in a dictionary", "alone", "a list", "nothing", "a module"],
)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_pickled_objects_are_not_run_and_give_no_weights(tmp_path, capsys, content, message, zipped):
    torch.save(content, tmp_path / "bad.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(UserError, match=message if zipped else "bad.pth"):
        load_weights(build_trunk("resnet18"), tmp_path / "bad.pth")
    assert "ran" not in capsys.readouterr().out


def test_pickled_objects_beside_the_weights_are_passed_over_and_not_run(tmp_path, capsys):
    source, trunk = build_trunk("resnet18"), build_trunk("resnet18")
    content = {
        "state_dict": source.state_dict(),
        "args": argparse.Namespace(lr=1.0, out=Path("runs")),
        "callbacks": {"best": np.float64(0.5), "payload": Payload()},
    }
    torch.save(content, tmp_path / "theirs.ckpt")
    load_weights(trunk, tmp_path / "theirs.ckpt")
    assert torch.equal(trunk.conv1.weight, source.conv1.weight)
    assert "ran" not in capsys.readouterr().out


def test_old_files_without_counts_of_batches(tmp_path):
    source, trunk = build_trunk("resnet18"), build_trunk("resnet18")
    state = {key: tensor for key, tensor in source.state_dict().items() if not key.endswith("num_batches_tracked")}
    trunk.bn1.num_batches_tracked.fill_(9)
    torch.save(state, tmp_path / "old.pth", _use_new_zipfile_serialization=False)
    load_weights(trunk, tmp_path / "old.pth")
    assert torch.equal(trunk.conv1.weight, source.conv1.weight)
    assert trunk.bn1.num_batches_tracked == 0


@pytest.mark.parametrize("file", ["model.safetensors", "model.pth"])
@pytest.mark.parametrize("content", [b"", b"\x00" * 100, b"PK\x03\x04 cut", b"text"])
def test_damaged_files_are_a_user_error(tmp_path, file, content):
    (tmp_path / file).write_bytes(content)
    with pytest.raises(UserError, match=file):
        load_backbone(tmp_path)


def test_folders_that_are_no_export(tmp_path):
    with pytest.raises(UserError, match="no such"):
        load_backbone(tmp_path / "nowhere")
    with pytest.raises(UserError, match=r"none of model\.safetensors"):
        load_backbone(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="name no trunk"):
        load_backbone(tmp_path)
    save_file({"a": torch.zeros(1)}, tmp_path / "model.safetensors", {"trunk": "resnet51", "stem": "imagenet"})
    with pytest.raises(UserError, match="resnet50"):
        load_backbone(tmp_path)


def test_an_export_with_a_head_put_into_it_is_no_backbone(tmp_path):
    trunk = build_trunk("resnet18")
    about = {"trunk": "resnet18", "stem": "imagenet", "layout": "timm"}
    save_file({**trunk.state_dict(), "fc.weight": torch.zeros(10, 512)}, tmp_path / "model.safetensors", about)
    with pytest.raises(UserError, match=r"holds a head too \(fc.weight\)"):
        load_backbone(tmp_path)
