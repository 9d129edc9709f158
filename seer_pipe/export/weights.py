"""Weight files: written as safetensors, and read back, ours or another library's, into a trunk."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from seer_pipe.errors import UserError
from seer_pipe.export.names import names_in, namings
from seer_pipe.models import Trunk

# Where checkpoints keep the model among other things; VISSL's and ClassyVision's nest four deep.
_CONTAINERS = ("classy_state_dict", "base_model", "state_dict", "model_state_dict", "model", "trunk")
_PREFIXES = re.compile(r"^(?:(?:module|_feature_blocks|regnet|resnet|backbone|bottom_up|trunk)\.)+")
_HEADS = re.compile(r"^(?:fc|head|heads|classifier|projection_head|prototypes)[.\d]")


@dataclass(frozen=True)
class Loaded:
    """What `load_weights` did."""

    library: str  # whose names the file has
    tensors: int  # loaded into the trunk
    left_out: tuple[str, ...]  # the file's tensors of a head, which a trunk has no place for


def write_weights(file: Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Write a safetensors file, or for a name in .pth a dictionary that ``torch.load(weights_only=True)`` reads.

    Floating-point tensors are stored as fp32. ``metadata`` says "format": "pt" whatever is given, as readers expect.
    """
    plain = {key: _plain(tensor) for key, tensor in tensors.items()}
    metadata = {**metadata, "format": "pt"}
    if file.suffix == ".pth":
        torch.save({"model": plain, "metadata": metadata}, file)
    else:
        save_file(plain, file, metadata)


def read_weights(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors and metadata of a file, or of the weight file in an exported folder.

    Pickled objects other than tensors and plain containers are never run: such a file is a `UserError`.
    """
    file = path
    if path.is_dir():
        found = [path / name for name in ("model.safetensors", "model.pth") if (path / name).is_file()]
        if not found:
            raise UserError(f"{path}: no model.safetensors or model.pth in it; is it an exported folder?")
        file = found[0]
    if not file.is_file():
        raise UserError(f"{path}: no such file or folder of weights")
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)


def load_weights(trunk: Trunk, path: Path) -> Loaded:
    """Load a checkpoint of torchvision, timm, Transformers, detectron2, VISSL (SEER), SwAV, or one of our exports.

    The library is recognised by its names. All of the trunk must be in the file, in the right shapes, and the file
    may hold nothing else but a head: anything else is a `UserError` that says what is missing and what is over.
    """
    tensors, _ = read_weights(path)
    found = strip_prefixes(tensors)
    maps = {library: names_in(trunk, library) for library in namings(trunk)}
    library = max(maps, key=lambda name: len(found.keys() & maps[name].values()))
    names = maps[library]
    left_out = {key for key in found.keys() - names.values() if _HEADS.match(key)}
    state = trunk.state_dict()
    problems = [
        _listed("missing", names.values() - found.keys()),
        _listed("unexpected", found.keys() - names.values() - left_out),
        _listed(
            "of another shape",
            {name for key, name in names.items() if name in found and found[name].shape != state[key].shape},
        ),
    ]
    if any(problems):
        report = "; ".join(filter(None, problems))
        raise UserError(f"{path}: not the weights of {trunk.name} ({trunk.stem_kind} stem), {library} names: {report}")
    trunk.load_state_dict({key: found[name] for key, name in names.items()})
    return Loaded(library, len(names), tuple(sorted(left_out)))


def strip_prefixes(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The same by names without what a wrapper or a larger model put before them."""
    return {_PREFIXES.sub("", key): tensor for key, tensor in tensors.items()}


def _listed(what: str, keys: Iterable[str]) -> str:
    """ "3 missing (a, b, c)", or nothing where there are none; a few are named."""
    keys = sorted(keys)
    return f"{len(keys)} {what} ({', '.join(keys[:4])}{', …' if len(keys) > 4 else ''})" if keys else ""


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.float() if tensor.is_floating_point() else tensor


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, "pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{file}: not a whole safetensors file ({error})") from error


def _read_torch(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes read as a pickle can raise anything
        raise UserError(
            f"{file}: damaged, or holds pickled objects besides tensors, which are never run; save its state dict alone"
        ) from error
    metadata = content.get("metadata") if isinstance(content, dict) else None
    while isinstance(content, dict) and (inside := next((key for key in _CONTAINERS if key in content), None)):
        content = content[inside]
    if not isinstance(content, dict):
        raise UserError(f"{file}: holds no state dict")
    tensors = {key: value for key, value in content.items() if isinstance(value, Tensor)}
    return tensors, {key: str(value) for key, value in metadata.items()} if isinstance(metadata, dict) else {}
