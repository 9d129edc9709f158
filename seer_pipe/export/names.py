"""What other libraries call a trunk's tensors: one table for each family of trunks, a row a library.

A trunk's tensors sit in the stem (convolution, norm) or in a part of a block, and their last name (weight, bias,
running_mean, ...) is the same everywhere. So a library's naming is two names of the stem, the name of block j
(from 0) of stage i (from 1), and the names of the block's parts, in the order of torchvision's, which are ours.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from seer_pipe.models import Trunk
from seer_pipe.models.regnet import REGNETS


@dataclass(frozen=True)
class Naming:
    stem: str
    block: Callable[[int, int], str]
    parts: str


_REGNET = {
    "torchvision": Naming(
        stem="stem.0 stem.1",
        block=lambda i, j: f"trunk_output.block{i}.block{i}-{j}",
        parts="proj.0 proj.1 f.a.0 f.a.1 f.b.0 f.b.1 f.se.fc1 f.se.fc2 f.c.0 f.c.1",
    ),
    "timm": Naming(
        stem="stem.conv stem.bn",
        block=lambda i, j: f"s{i}.b{j + 1}",
        parts="downsample.conv downsample.bn conv1.conv conv1.bn conv2.conv conv2.bn se.fc1 se.fc2 conv3.conv conv3.bn",
    ),
    "huggingface": Naming(
        stem="embedder.embedder.convolution embedder.embedder.normalization",
        block=lambda i, j: f"encoder.stages.{i - 1}.layers.{j}",
        parts="shortcut.convolution shortcut.normalization layer.0.convolution layer.0.normalization"
        " layer.1.convolution layer.1.normalization layer.2.attention.0 layer.2.attention.2"
        " layer.3.convolution layer.3.normalization",
    ),
    "detectron2": Naming(
        stem="stem.conv stem.bn",
        block=lambda i, j: f"s{i}.b{j + 1}",
        parts="proj bn f.a f.a_bn f.b f.b_bn f.se.f_ex.0 f.se.f_ex.2 f.c f.c_bn",
    ),
    "vissl": Naming(
        stem="conv1.stem.0 conv1.stem.1",
        block=lambda i, j: f"res{i}.block{i}-{j}",
        parts="proj bn f.a.0 f.a.1 f.b.0 f.b.1 f.se.excitation.0 f.se.excitation.2 f.c f.final_bn",
    ),
}
_REGNET["torchvision in nn.Sequential"] = replace(  # as lightly's users make a backbone of a model's children
    _REGNET["torchvision"], stem="0.0 0.1", block=lambda i, j: f"1.block{i}.block{i}-{j}"
)
_RESNET = {
    "torchvision": Naming(  # and timm, VISSL, SwAV
        stem="conv1 bn1",
        block=lambda i, j: f"layer{i}.{j}",
        parts="conv1 bn1 conv2 bn2 conv3 bn3 downsample.0 downsample.1",
    ),
    "huggingface": Naming(
        stem="embedder.embedder.convolution embedder.embedder.normalization",
        block=lambda i, j: f"encoder.stages.{i - 1}.layers.{j}",
        parts="layer.0.convolution layer.0.normalization layer.1.convolution layer.1.normalization"
        " layer.2.convolution layer.2.normalization shortcut.convolution shortcut.normalization",
    ),
    "detectron2": Naming(
        stem="stem.conv1 stem.conv1.norm",
        block=lambda i, j: f"res{i + 1}.{j}",
        parts="conv1 conv1.norm conv2 conv2.norm conv3 conv3.norm shortcut shortcut.norm",
    ),
}
_RESNET["timm"] = _RESNET["torchvision"]
_RESNET["torchvision in nn.Sequential"] = replace(_RESNET["torchvision"], stem="0 1", block=lambda i, j: f"{i + 3}.{j}")
_RESNET["lightly"] = replace(  # its own ResNet for small images, which pools and rectifies without modules
    _RESNET["torchvision"],
    stem="0 1",
    block=lambda i, j: f"{i + 1}.{j}",
    parts="conv1 bn1 conv2 bn2 conv3 bn3 shortcut.0 shortcut.1",
)
_BLOCK = re.compile(r"(?:trunk_output\.block\d\.block|layer)(\d)[-.](\d+)\.")  # ours, in both families


def namings(trunk: Trunk) -> dict[str, Naming]:
    """The namings known for this trunk's family, by library."""
    return _REGNET if trunk.name in REGNETS else _RESNET


def names_in(trunk: Trunk, library: str) -> dict[str, str]:
    """{our name of a tensor: that library's name of it}, for every tensor of the trunk, one to one."""
    ours, theirs = namings(trunk)["torchvision"], namings(trunk)[library]
    stem = dict(zip(ours.stem.split(), theirs.stem.split(), strict=True))
    parts = dict(zip(ours.parts.split(), theirs.parts.split(), strict=True))

    def translate(key: str) -> str:
        module, tensor = key.rsplit(".", 1)
        block = _BLOCK.match(module)
        if block is None:
            return f"{stem[module]}.{tensor}"
        return f"{theirs.block(int(block[1]), int(block[2]))}.{parts[module[block.end() :]]}.{tensor}"

    return {key: translate(key) for key in trunk.state_dict()}
