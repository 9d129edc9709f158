"""Trunks by name."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Literal

import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from seer_pipe.errors import UserError
from seer_pipe.models.conv2d import Conv2dTrunk
from seer_pipe.models.init import init_weights
from seer_pipe.models.r2plus1d import R2Plus1dTrunk
from seer_pipe.models.regnet import REGNETS, RegNetTrunk
from seer_pipe.models.resnet import RESNETS, ResNetTrunk
from seer_pipe.models.trunk import Trunk

Stem = Literal["imagenet", "small"]
Norm = Literal["batch", "layer"]


@dataclass(frozen=True)
class Family:
    """Trunks that are built alike."""

    names: Sequence[str]
    make: Callable[[str, Stem, int], Trunk]  # of the name and stem, for images of so many channels
    stems: Sequence[Stem] = ("imagenet",)


FAMILIES = [
    Family(tuple(REGNETS), lambda name, _, channels: RegNetTrunk(name, channels)),
    Family(tuple(RESNETS), ResNetTrunk, ("imagenet", "small")),
    Family((Conv2dTrunk.name,), lambda _name, _stem, channels: Conv2dTrunk(channels)),
    Family((R2Plus1dTrunk.name,), lambda _name, _stem, channels: R2Plus1dTrunk(channels)),
]


def trunk_names() -> list[str]:
    """Every name that `build_trunk` knows, RegNets by size first."""
    return [name for family in FAMILIES for name in family.names]


def build_trunk(name: str, *, stem: Stem = "imagenet", norm: Norm = "batch", channels: int = 3) -> Trunk:
    """The trunk of that name, on the default device, initialised from torch's default generator. Spectrograms have one
    channel, images three.

    On the meta device nothing is initialised: give it memory with ``to_empty``, then call `init_weights`.
    A name that torchvision has too is torchvision's architecture, so its export loads there: ``regnety_800mf``
    and ``regnety_8gf`` are therefore not the models of these sizes in pycls and ClassyVision. ``regnety_256gf``
    and ``regnety_10b`` are SEER's. ``stem="small"``, for images of 32 to 96 pixels, exists for ResNets only.
    ``norm="layer"`` has LayerNorm in the place of BatchNorm: over all channels and positions of an image or clip, with
    a scale and a shift for each channel, so that none depends on the others of its batch.
    """
    family = next((family for family in FAMILIES if name in family.names), None)
    if family is None:
        near = get_close_matches(name, trunk_names(), n=3) or trunk_names()
        raise UserError(f"no trunk is named {name!r}: try {', '.join(near)}")
    if stem not in family.stems:
        raise UserError(f"{name} has no stem {stem!r}: choose {' or '.join(family.stems)}")
    device = torch.get_default_device()
    with torch.device("meta"):  # so that memory is written once, by our initialisation
        trunk = family.make(name, stem, channels)
        if norm == "layer":
            _take_layer_norm(trunk)
    if device.type != "meta":
        trunk.to_empty(device=device)
        init_weights(trunk, torch.default_generator)
    return trunk


def _take_layer_norm(trunk: Trunk) -> None:
    """Parameters keep their names; running statistics are gone."""
    trunk.norm_kind = "layer"
    for name, layer in list(trunk.named_modules()):
        if isinstance(layer, nn.BatchNorm2d | nn.BatchNorm3d):
            trunk.set_submodule(name, nn.GroupNorm(1, layer.num_features))


@functools.cache
def multiply_adds(name: str, size: int | tuple[int, ...], *, stem: Stem = "imagenet") -> int:
    """Multiply-adds of convolutions in the forward pass of one image of ``size`` x ``size`` pixels, or of so many
    channels, rows and columns; of a clip channels, frames, rows and columns.

    A training step costs three times as many (forward, gradient of inputs, gradient of weights), four with
    activation checkpointing; one multiply-add is two floating-point operations.
    """
    shape = (3, size, size) if isinstance(size, int) else size
    with torch.device("meta"):
        trunk = build_trunk(name, stem=stem, channels=shape[0]).eval()
        with FlopCounterMode(display=False) as counter:
            trunk(torch.empty(1, *shape))
    return counter.get_total_flops() // 2
