"""Public checkpoints made backbones of ours: which trunk they are is found out."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from typer.testing import CliRunner

from seer_pipe.cli import app
from seer_pipe.errors import UserError
from seer_pipe.export import init_backbone, load_backbone
from seer_pipe.export.match import nearest_trunk
from seer_pipe.models import build_trunk, trunk_names


@pytest.mark.slow
@torch.no_grad()
def test_torchvisions_checkpoint_in_one_command(torchvision, tmp_path: Path) -> None:
    theirs = torchvision.models.regnet_y_400mf().eval()
    torch.save(theirs.state_dict(), tmp_path / "regnet_y_400mf.pth")
    result = CliRunner().invoke(app, ["init", str(tmp_path / "regnet_y_400mf.pth"), "--out", str(tmp_path / "out")])
    assert result.exit_code == 0
    said = result.stdout.splitlines()
    assert said[0] == "regnety_400mf (imagenet stem): 382 tensors by their names in torchvision"
    assert said[1] == "not taken: fc (2 tensors)"
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
    names = regnet.names_in("vissl")
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
    for library in trunk.namings:
        names = trunk.names_in(library)
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


def prefixed(prefix: str, state: dict, **more: torch.Tensor) -> dict:
    return {
        **{f"{prefix}{name}": value for name, value in state.items()},
        **{f"{prefix}{n}": t for n, t in more.items()},
    }


def other(state: dict) -> dict:
    """A copy of the network that is not meant."""
    return {name: value + 1 for name, value in state.items()}


ONE = torch.ones(1)


def moco(state: dict) -> dict:
    nets = prefixed("module.encoder_q.", state, **{"fc.0.weight": ONE, "fc.2.weight": ONE})
    copies = prefixed("module.encoder_k.", other(state))
    queue = {"module.queue": torch.ones(128, 16), "module.queue_ptr": torch.zeros(1, dtype=torch.long)}
    return {"epoch": 200, "arch": "resnet18", "state_dict": {**copies, **nets, **queue},
            "optimizer": {"state": {0: {"momentum_buffer": ONE}}, "param_groups": [{"lr": 0.1}]}}  # fmt: skip


def moco_v3(state: dict) -> dict:
    copies = prefixed("module.momentum_encoder.", other(state), **{"fc.0.weight": ONE})
    nets = prefixed("module.base_encoder.", state, **{"fc.0.weight": ONE, "fc.1.running_mean": ONE})
    return {"state_dict": {**copies, **nets, "module.predictor.0.weight": ONE}, "scaler": {"scale": 1.0}}


def barlow_twins(state: dict) -> dict:
    head = {"module.projector.0.weight": ONE, "module.bn.running_mean": ONE}
    return {"epoch": 1, "model": {**prefixed("module.backbone.", state), **head}}


def dino(state: dict) -> dict:
    student = prefixed("module.backbone.", other(state), **{"head.mlp.0.weight": ONE})
    teacher = {**prefixed("backbone.", state), "head.last_layer.weight_g": ONE}
    return {"student": student, "teacher": teacher, "epoch": 3}


def solo_learn(state: dict) -> dict:
    nets = {**prefixed("momentum_backbone.", other(state)), **prefixed("backbone.", state)}
    heads = {"classifier.weight": ONE, "projector.0.weight": ONE, "momentum_projector.0.weight": ONE}
    return {"state_dict": {**nets, **heads}, "global_step": 5, "hyper_parameters": {"lr": 0.1}}


def lightly(state: dict) -> dict:
    with torch.device("meta"):
        names = build_trunk("resnet18").names_in("torchvision in nn.Sequential")
    renamed = {names[name]: value for name, value in state.items()}
    nets = {**prefixed("backbone_momentum.", other(renamed)), **prefixed("backbone.", renamed)}
    return {"state_dict": {**nets, "projection_head.layers.0.weight": ONE}, "pytorch-lightning_version": "2.4"}


def lightlys_own_resnet(state: dict) -> dict:
    with torch.device("meta"):
        names = build_trunk("resnet18").names_in("lightly")
    return {"state_dict": prefixed("backbone.", {names[name]: value for name, value in state.items()})}


def compiled(state: dict) -> dict:
    return {
        "model": prefixed("module._orig_mod.", {name.replace(".0.", ".0._orig_mod."): v for name, v in state.items()})
    }


def timm_with_average(state: dict) -> dict:
    return {"state_dict": other(state), "state_dict_ema": prefixed("module.", state), "arch": "resnet18"}


LAYOUTS = {
    moco: "state_dict.encoder_q.",
    moco_v3: "state_dict.base_encoder.",
    barlow_twins: "model.backbone.",
    dino: "teacher.backbone.",
    solo_learn: "state_dict.backbone.",
    lightly: "state_dict.backbone.",
    lightlys_own_resnet: "state_dict.backbone.",
    compiled: "model.",
    timm_with_average: "state_dict_ema.",
}


@pytest.mark.parametrize("nested", LAYOUTS, ids=lambda nested: nested.__name__)
def test_the_network_that_is_evaluated_is_found_in_what_others_save(tmp_path: Path, nested) -> None:
    source = build_trunk("resnet18", stem="small" if nested is lightlys_own_resnet else "imagenet")
    state = source.state_dict()
    torch.save(nested(state), tmp_path / "theirs.pth")
    trunk, loaded = init_backbone(tmp_path / "theirs.pth", tmp_path / "out")
    assert (trunk.name, trunk.stem_kind, loaded.prefix) == ("resnet18", source.stem_kind, LAYOUTS[nested])
    back = load_backbone(tmp_path / "out").state_dict()
    assert all(torch.equal(value, back[name]) for name, value in state.items())


def test_what_is_left_out_is_reported_by_its_place(tmp_path: Path) -> None:
    torch.save(moco(build_trunk("resnet18").state_dict()), tmp_path / "moco.pth")
    result = CliRunner().invoke(app, ["init", str(tmp_path / "moco.pth"), "--out", str(tmp_path / "out")])
    assert result.stdout.splitlines()[:-1] == [
        "resnet18 (imagenet stem): 120 tensors by their names in torchvision under state_dict.encoder_q.",
        "not taken: optimizer (1 tensor)",
        "not taken: state_dict.encoder_k (120 tensors)",
        "not taken: state_dict.encoder_q.fc (2 tensors)",
        "not taken: state_dict.queue (1 tensor)",
        "not taken: state_dict.queue_ptr (1 tensor)",
    ]


def test_transformers_folders_whole_and_in_parts(torchvision, tmp_path: Path) -> None:
    """As ``save_pretrained`` writes them, and as older versions of it did."""
    transformers = pytest.importorskip("transformers")
    config = transformers.RegNetConfig(hidden_sizes=[24, 56, 152, 368], depths=[1, 1, 4, 7], groups_width=8)
    model = transformers.RegNetForImageClassification(config)
    model.save_pretrained(tmp_path / "parts", max_shard_size="2MB")
    assert (tmp_path / "parts" / "model.safetensors.index.json").exists()
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    state = model.state_dict()
    (tmp_path / "bin").mkdir()
    torch.save(state, tmp_path / "bin" / "pytorch_model.bin")
    names = sorted(state)
    places = {name: f"pytorch_model-0000{1 + number % 2}-of-00002.bin" for number, name in enumerate(names)}
    (tmp_path / "bins").mkdir()
    for file in set(places.values()):
        torch.save({name: state[name] for name in names if places[name] == file}, tmp_path / "bins" / file)
    index = tmp_path / "bins" / "pytorch_model.bin.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": places}))
    for number, source in enumerate([tmp_path / "parts", tmp_path / "bin", tmp_path / "bins", index]):
        trunk, loaded = init_backbone(source, tmp_path / str(number))
        assert (trunk.name, loaded.library, loaded.prefix) == ("regnety_200mf", "huggingface", "regnet.")
        assert loaded.parts_left_out == {"classifier": 2}
        assert torch.equal(trunk.stem[0].weight, model.regnet.embedder.embedder.convolution.weight)


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("{", "no readable weight_map"),
        ("[]", "no readable weight_map"),
        ('{"weight_map": {"a": "gone.safetensors"}}', "gone.safetensors: missing"),
        ('{"weight_map": {"a": "../secret.safetensors"}}', "without a folder"),
        ('{"weight_map": {"a": "part.safetensors", "b": "part.safetensors"}}', "1 of its tensors .* the first a"),
    ],
)
def test_an_index_that_does_not_hold_is_one_line(tmp_path: Path, index: str, message: str) -> None:
    save_file({"b": ONE}, tmp_path / "part.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(index)
    with pytest.raises(UserError, match=message):
        init_backbone(tmp_path, tmp_path / "out")


def test_a_trunk_that_is_not_known_is_said_with_the_nearest(torchvision, tmp_path: Path) -> None:
    """A ResNet-50 of double width, as SwAV released one, and a vision transformer."""
    with torch.device("meta"):
        wide = torchvision.models.ResNet(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], 10)
    state = {name: torch.zeros([2 * n if n == 64 else n for n in t.shape]) for name, t in wide.state_dict().items()}
    del state["bn1.num_batches_tracked"]
    save_file(
        {name: t for name, t in state.items() if "layer" not in name or "4" not in name}, tmp_path / "wide.safetensors"
    )
    with pytest.raises(
        UserError, match=r"no trunk that is known here.* nearest is resnet18 .*. Known are regnety_200mf"
    ):
        init_backbone(tmp_path / "wide.safetensors", tmp_path / "out")
    save_file({"cls_token": torch.zeros(1, 1, 384), "blocks.0.attn.qkv.weight": torch.zeros(8, 8)},
              tmp_path / "vit.safetensors")  # fmt: skip
    with pytest.raises(UserError, match=r"holds no trunk that is known here.* cls_token \[1, 1, 384\]"):
        init_backbone(tmp_path / "vit.safetensors", tmp_path / "out")
