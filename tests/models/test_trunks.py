"""Trunks against their published sizes and against torchvision's own."""

import pytest
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from seer_pipe.errors import UserError
from seer_pipe.models import build_trunk, init_weights, multiply_adds, trunk_names
from seer_pipe.models.regnet import REGNETS
from tests.distributed import run_ranks

MILLION, BILLION = 1e6, 1e9

# RegNet and SEER papers, torchvision's model table: stage widths, million parameters, GMAC at 224 pixels.
REGNET_TABLE = {
    "regnety_200mf": ((24, 56, 152, 368), 2.79, 0.20),
    "regnety_400mf": ((48, 104, 208, 440), 3.90, 0.40),
    "regnety_800mf": ((64, 144, 320, 784), 5.65, 0.83),
    "regnety_1_6gf": ((48, 120, 336, 888), 10.31, 1.61),
    "regnety_3_2gf": ((72, 216, 576, 1512), 17.92, 3.17),
    "regnety_8gf": ((224, 448, 896, 2016), 37.36, 8.47),
    "regnety_16gf": ((224, 448, 1232, 3024), 80.57, 15.91),
    "regnety_32gf": ((232, 696, 1392, 3712), 141.33, 32.28),
    "regnety_64gf": ((328, 984, 1968, 4920), 276.46, 64.07),
    "regnety_128gf": ((528, 1056, 2904, 7392), 637.42, 127.5),
    "regnety_256gf": ((746, 1492, 4103, 10444), 1272.16, 254.4),
    "regnety_10b": ((2020, 4040, 11110, 28280), 9323.9, 1863.0),
}
RESNET_TABLE = {"resnet18": 1.81, "resnet50": 4.09, "resnext50_32x4d": 4.23, "resnext101_32x8d": 16.41}


def on_meta(name: str):
    with torch.device("meta"):
        return build_trunk(name)


def in_torchvision(torchvision, name: str) -> nn.Module:
    return getattr(torchvision.models, name.replace("regnety_", "regnet_y_"))()


@pytest.mark.parametrize("name", REGNET_TABLE)
def test_regnets_have_the_published_sizes(name):
    widths, millions, gmac = REGNET_TABLE[name]
    trunk = on_meta(name)
    assert tuple(width for width, _ in trunk.stages) == widths
    assert len(trunk.blocks()) == REGNETS[name].depth
    assert trunk.width == widths[-1]
    assert sum(p.numel() for p in trunk.parameters()) / MILLION == pytest.approx(millions, rel=2e-3)
    assert multiply_adds(name, 224) / BILLION == pytest.approx(gmac, rel=5e-3)


@pytest.mark.parametrize("name", RESNET_TABLE)
def test_resnets_have_the_published_cost(name):
    assert multiply_adds(name, 224) / BILLION == pytest.approx(RESNET_TABLE[name], rel=2e-3)


@pytest.mark.parametrize(
    "name",
    [
        "regnety_400mf",
        "regnety_800mf",
        "regnety_8gf",
        "resnet18",
        "resnet50",
        "resnext50_32x4d",
        "wide_resnet50_2",
    ],
)
def test_same_names_and_features_as_torchvision(torchvision, name):
    """Weights move by name alone; RegNets of both group-fitting cases, all ResNet block kinds."""
    theirs = in_torchvision(torchvision, name).eval()
    theirs.fc = nn.Identity()
    scramble_statistics(theirs)
    trunk = build_trunk(name).eval()
    assert list(trunk.state_dict()) == list(theirs.state_dict())
    trunk.load_state_dict(theirs.state_dict())
    images = torch.randn(2, 3, 96, 64)
    with torch.no_grad():
        assert (trunk(images) - theirs(images)).abs().max() < 1e-6


@pytest.mark.parametrize("name", ["regnety_1_6gf", "regnety_3_2gf", "regnety_16gf", "resnet34", "resnext101_32x8d"])
def test_same_shapes_as_torchvision(torchvision, name):
    theirs = {k: v.shape for k, v in in_torchvision(torchvision, name).state_dict().items() if not k.startswith("fc.")}
    assert {k: v.shape for k, v in on_meta(name).state_dict().items()} == theirs


@pytest.mark.parametrize(("size", "resolution"), [(32, 4), (96, 12)])
def test_small_stem_keeps_the_resolution(size, resolution):
    trunk = build_trunk("resnet18", stem="small")
    assert trunk.feature_map(torch.zeros(2, 3, size, size)).shape == (2, 512, resolution, resolution)
    assert trunk.conv1.weight.shape == (64, 3, 3, 3)


@pytest.mark.parametrize("name", ["regnety_200mf", "resnet18", "resnet50"])
def test_with_layer_norm_no_image_depends_on_another(name):
    """Also in training mode; the tensors that are left have the names, shapes and first values of the usual ones."""
    torch.manual_seed(0)
    usual = build_trunk(name).state_dict()
    torch.manual_seed(0)
    trunk = build_trunk(name, norm="layer").train()
    assert trunk.norm_kind == "layer"
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    kept = {key: tensor for key, tensor in usual.items() if not key.endswith(statistics)}
    assert list(trunk.state_dict()) == list(kept)
    assert all(torch.equal(tensor, kept[key]) for key, tensor in trunk.state_dict().items())
    images = torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        found = trunk(images)
        torch.testing.assert_close(trunk(images[1:2]), found[1:2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(trunk(20 * images), found, rtol=1e-2, atol=1e-2)  # it takes out its own contrast


def test_blocks_hold_all_parameters_but_the_stem():
    for name in ("regnety_400mf", "resnet50"):
        trunk = on_meta(name)
        inside = {id(p) for block in trunk.blocks() for p in block.parameters()}
        outside = [p for p in trunk.parameters() if id(p) not in inside]
        assert sum(p.numel() for p in outside) < 10_000
        assert all(isinstance(block, nn.Module) for block in trunk.blocks())


def test_initial_weights_have_the_originals_distribution():
    trunk = build_trunk("regnety_400mf")
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 20_000:
            fan_out = module.out_channels * module.kernel_size[0] ** 2
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
            assert abs(module.weight.mean().item()) < 0.05 * fan_out**-0.5
        if isinstance(module, nn.BatchNorm2d):
            assert torch.equal(module.weight, torch.ones_like(module.weight))
            assert torch.equal(module.running_var, torch.ones_like(module.weight))
            assert not module.running_mean.any()
            assert not module.bias.any()
            assert module.num_batches_tracked == 0
        if isinstance(module, nn.Conv2d) and module.bias is not None:
            bound = module.in_channels**-0.5
            assert bound / 2 < module.bias.abs().max() <= bound


@pytest.mark.parametrize("name", ["regnety_200mf", "resnet18"])
def test_initial_weights_depend_on_the_seed_alone(name):
    """The same whether built in place, or on the meta device and given memory full of garbage later."""
    torch.manual_seed(5)
    seeded = build_trunk(name)
    late = on_meta(name).to_empty(device="cpu")
    for tensor in late.state_dict().values():
        tensor.fill_(7)
    init_weights(late, torch.Generator().manual_seed(5))
    other = build_trunk(name)
    assert all(torch.equal(a, b) for a, b in zip(seeded.state_dict().values(), late.state_dict().values(), strict=True))
    assert not torch.equal(next(seeded.parameters()), next(other.parameters()))


def sharded_init() -> bool:
    trunk = on_meta("regnety_200mf")
    for block in trunk.blocks():
        fully_shard(block)
    fully_shard(trunk)
    trunk.to_empty(device="cpu")
    init_weights(trunk, torch.Generator().manual_seed(5))
    whole = on_meta("regnety_200mf").to_empty(device="cpu")
    init_weights(whole, torch.Generator().manual_seed(5))
    parts = [part.full_tensor() if isinstance(part, DTensor) else part for part in trunk.state_dict().values()]
    return all(torch.equal(a, b) for a, b in zip(parts, whole.state_dict().values(), strict=True))


@pytest.mark.slow
def test_sharded_trunk_starts_from_the_same_weights():
    assert run_ranks(2, sharded_init) == [True, True]


def test_wrong_names_are_answered_with_near_ones():
    with pytest.raises(UserError, match="regnety_16gf"):
        build_trunk("regnet_y_16gf")
    with pytest.raises(UserError, match="resnet50"):
        build_trunk("zzz")
    with pytest.raises(UserError, match="no stem 'small'"):
        build_trunk("regnety_400mf", stem="small")


def test_every_name_builds():
    assert len(trunk_names()) == len(set(trunk_names())) == 24
    for name in trunk_names():
        assert on_meta(name).name == name


def scramble_statistics(model: nn.Module) -> None:
    """Give BatchNorm means, variances, scales and shifts of their own, so that a swap of two shows."""
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm3d):
            for tensor in (module.running_mean, module.bias):
                nn.init.normal_(tensor, 0, 0.1, generator=generator)
            for tensor in (module.running_var, module.weight):
                nn.init.uniform_(tensor, 0.5, 1.0, generator=generator)
