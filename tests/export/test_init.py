"""Public checkpoints made backbones of ours: which trunk they are is found out."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from seer_pipe.cli import app
from seer_pipe.errors import UserError
from seer_pipe.export import init_backbone, load_backbone
from seer_pipe.export.init import nearest_trunk
from seer_pipe.export.names import names_in, namings
from seer_pipe.models import build_trunk, trunk_names


@torch.no_grad()
def test_torchvisions_checkpoint_in_one_command(torchvision, tmp_path: Path) -> None:
    theirs = torchvision.models.regnet_y_400mf().eval()
    torch.save(theirs.state_dict(), tmp_path / "regnet_y_400mf.pth")
    result = CliRunner().invoke(app, ["init", str(tmp_path / "regnet_y_400mf.pth"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0
    said = result.stdout.splitlines()
    assert said[0].startswith("regnety_400mf: ")
    assert said[0].endswith("names in torchvision; left out: fc.bias, fc.weight")
    theirs.fc = nn.Identity()
    images = torch.randn(2, 3, 64, 64)
    assert torch.allclose(load_backbone(tmp_path / "out")(images), theirs(images), rtol=1e-5, atol=1e-5)
    assert "made of regnet_y_400mf.pth" in (tmp_path / "out/README.md").read_text()
    assert "trained by seer_pipe" not in (tmp_path / "out/README.md").read_text()


def test_swavs_and_seers_checkpoints(tmp_path: Path) -> None:
    """SwAV's with `module.` and its heads; SEER's nested as VISSL saves it."""
    resnet = build_trunk("resnet18").state_dict()
    heads = {"projection_head.0.weight": torch.zeros(1), "prototypes.weight": torch.zeros(1)}
    torch.save({f"module.{name}": value for name, value in {**resnet, **heads}.items()}, tmp_path / "swav.pth.tar")
    regnet = build_trunk("regnety_200mf")
    names = names_in(regnet, "vissl")
    vissl = {f"_feature_blocks.{names[ours]}": value for ours, value in regnet.state_dict().items()}
    torch.save({"classy_state_dict": {"base_model": {"model": {"trunk": vissl}}}}, tmp_path / "seer.torch")
    files = {"resnet18": ("swav.pth.tar", resnet), "regnety_200mf": ("seer.torch", regnet.state_dict())}
    for name, (file, theirs) in files.items():
        trunk, _ = init_backbone(tmp_path / file, tmp_path / name)
        back = load_backbone(tmp_path / name)
        assert trunk.name == back.name == name
        assert all(torch.equal(value, back.state_dict()[key]) for key, value in theirs.items())


@pytest.mark.parametrize("name", trunk_names())
def test_every_trunk_is_recognised_by_every_librarys_names(name: str) -> None:
    with torch.device("meta"):
        trunk = build_trunk(name)
    for library in namings(trunk):
        names = names_in(trunk, library)
        shapes = {names[ours]: value.shape for ours, value in trunk.state_dict().items()}
        assert nearest_trunk(shapes).name == name


def test_the_small_stem_is_recognised() -> None:
    shapes = {key: value.shape for key, value in build_trunk("resnet18", stem="small").state_dict().items()}
    assert nearest_trunk(shapes).stem_kind == "small"


def test_what_does_not_match_is_listed_and_nothing_written(tmp_path: Path) -> None:
    state = build_trunk("resnet18").state_dict()
    state.pop("bn1.bias")
    save_file({**state, "adapter.weight": torch.zeros(1)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"resnet18 .*1 missing \(bn1.bias\); 1 unexpected \(adapter.weight\)"):
        init_backbone(tmp_path / "model.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()
