"""The trunk of clips, against torchvision's own."""

import pytest
import torch
from torch import nn

from seer_pipe.models import build_trunk, init_weights, multiply_adds
from tests.models.test_trunks import scramble_statistics


@torch.no_grad()
def test_same_names_and_features_as_torchvision(torchvision) -> None:
    theirs = torchvision.models.video.r2plus1d_18().eval()
    theirs.fc = nn.Identity()
    scramble_statistics(theirs)
    trunk = build_trunk("r2plus1d_18").eval()
    assert list(trunk.state_dict()) == list(theirs.state_dict())
    trunk.load_state_dict(theirs.state_dict())
    clips = torch.randn(2, 3, 5, 40, 32)
    assert (trunk(clips) - theirs(clips)).abs().max() < 1e-6


def test_it_has_the_published_size_and_cost() -> None:
    """torchvision's table: 31.5 M parameters with the 400 classes, 40.52 GFLOPS, as it counts a multiply-add, of 16
    frames of 112 pixels."""
    with torch.device("meta"):
        trunk = build_trunk("r2plus1d_18")
    assert sum(p.numel() for p in trunk.parameters()) + 400 * 513 == 31505325
    assert multiply_adds("r2plus1d_18", (3, 16, 112, 112)) / 1e9 == pytest.approx(40.52, rel=1e-3)


@torch.no_grad()
def test_maps_of_stages_are_means_over_time() -> None:
    trunk = build_trunk("r2plus1d_18").eval()
    clips = torch.randn(2, 3, 8, 32, 32)
    assert trunk.feature_map(clips).shape == (2, 512, 1, 2, 2)
    maps = trunk.stage_maps(clips)
    assert [tuple(one.shape) for one in maps] == [(2, 64, 16, 16), (2, 128, 8, 8), (2, 256, 4, 4), (2, 512, 2, 2)]
    torch.testing.assert_close(maps[-1].mean((2, 3)), trunk(clips))


@torch.no_grad()
def test_what_moves_is_another_than_what_stands() -> None:
    """The order of the frames counts; without convolutions over time it would not."""
    trunk = build_trunk("r2plus1d_18").eval()
    clip = torch.randn(1, 3, 8, 32, 32)
    assert not torch.allclose(trunk(clip), trunk(clip.flip(2)), rtol=1e-3)


@torch.no_grad()
def test_with_layer_norm_no_clip_depends_on_another() -> None:
    trunk = build_trunk("r2plus1d_18", norm="layer").train()
    assert not any(isinstance(layer, nn.BatchNorm3d) for layer in trunk.modules())
    clips = torch.randn(3, 3, 4, 32, 32)
    torch.testing.assert_close(trunk(clips[1:2]), trunk(clips)[1:2], rtol=1e-4, atol=1e-5)


def test_blocks_hold_all_parameters_but_the_stem() -> None:
    with torch.device("meta"):
        trunk = build_trunk("r2plus1d_18")
    inside = {id(p) for block in trunk.blocks() for p in block.parameters()}
    outside = [name for name, p in trunk.named_parameters() if id(p) not in inside]
    assert all(name.startswith("stem.") for name in outside)
    assert sum(p.numel() for p in trunk.stem.parameters()) < 20_000


def test_first_weights_have_the_originals_distribution() -> None:
    trunk = build_trunk("r2plus1d_18")
    init_weights(trunk, torch.Generator().manual_seed(0))
    for module in trunk.modules():
        if isinstance(module, nn.Conv3d) and module.weight.numel() > 20_000:
            fan_out = module.weight[0, 0].numel() * module.out_channels
            assert module.weight.std().item() == pytest.approx((2 / fan_out) ** 0.5, rel=0.05)
