"""Weight files: written as safetensors, and read back, ours or another library's, whatever they are nested in."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from seer_pipe.errors import UserError

#: What a folder of weights may hold: ours, timm's and Transformers' names, the safest first.
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
         "model.pth")  # fmt: skip
#: Parts of a name that a wrapper around a module has put there: DDP, torch.compile, checkpointing, FSDP1.
_WRAPPERS = {"module", "_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


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
    """All tensors of a file, of the weight file in a folder, or of the parts that an ``index.json`` lists, and the
    metadata.

    A tensor's name leads through what it is nested in: ``state_dict.encoder_q.conv1.weight``; what wrappers put into
    names (``module``, ``_orig_mod``, ...) is removed. No code of a file is ever run: what a pickle holds besides
    tensors and plain containers is passed over.
    """
    file = path
    if path.is_dir():
        found = next((path / name for name in FILES if (path / name).is_file()), None)
        if found is None:
            raise UserError(f"{path}: holds no weights: none of {', '.join(FILES)} is in it")
        file = found
    if not file.is_file():
        raise UserError(f"{path}: no such file or folder of weights")
    tensors, metadata = _read_parts(file) if file.name.endswith(".index.json") else _read_file(file)
    if not tensors:
        raise UserError(f"{file}: holds no tensors by name; save the model's state_dict() alone")
    return {_unwrapped(name): tensor for name, tensor in tensors.items()}, metadata


def _plain(tensor: Tensor) -> Tensor:
    tensor = tensor.detach().cpu().contiguous()
    return tensor.float() if tensor.is_floating_point() else tensor


def _unwrapped(name: str) -> str:
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def _read_file(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    return _read_safetensors(file) if file.suffix == ".safetensors" else _read_torch(file)


def _read_parts(index: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Of weights in several files, as Transformers cuts large ones: {"weight_map": {tensor's name: file's name}}."""
    try:
        places = json.loads(index.read_text())["weight_map"]
        parts = sorted({str(name) for name in places.values()})
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError(f"{index}: not an index of weights: no readable weight_map in it") from error
    tensors: dict[str, Tensor] = {}
    for part in parts:
        if Path(part).name != part:
            raise UserError(
                f"{index}: names {part!r}; the parts lie beside the index, so a name without a folder is due"
            )
        if not (index.parent / part).is_file():
            raise UserError(f"{index.parent / part}: missing, though {index.name} lists it; download the folder again")
        tensors |= _read_file(index.parent / part)[0]
    absent = sorted(places.keys() - tensors.keys())
    if absent:
        raise UserError(f"{index}: {len(absent)} of its tensors are in none of its files, the first {absent[0]}")
    return tensors, {}


def _read_safetensors(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        with safe_open(file, "pt") as opened:
            return {key: opened.get_tensor(key) for key in opened.keys()}, opened.metadata() or {}  # noqa: SIM118
    except SafetensorError as error:
        raise UserError(f"{file}: not a whole safetensors file ({error})") from error


class _Inert:
    """What stands for any object in a pickle that is no tensor: takes whatever it is made of, and does nothing."""

    def __init__(self, *_: Any, **__: Any) -> None: ...

    def __setstate__(self, _: Any) -> None: ...


def _read_torch(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    try:
        # settings and callbacks' states beside the weights (of argparse, omegaconf, Lightning) must not keep them back
        others: list[Any] = [(_Inert, name) for name in _classes_in(file)]
        with torch.serialization.safe_globals(others):
            content: Any = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # damaged bytes read as a pickle can raise anything
        raise UserError(
            f"{file}: damaged, or not a file of weights that can be read without running code of it; "
            "save its state dict alone"
        ) from error
    if not isinstance(content, Mapping):
        kind = "an object, whose code is never run" if isinstance(content, _Inert) else f"a {type(content).__name__}"
        raise UserError(f"{file}: holds {kind}, and no state dict; save the model's state_dict() alone")
    metadata = content.get("metadata")
    about = {str(key): str(value) for key, value in metadata.items()} if isinstance(metadata, Mapping) else {}
    return dict(_tensors_in(content)), about


def _classes_in(file: Path) -> list[str]:
    """Names of what the pickle would import, beyond what torch itself allows."""
    try:
        return torch.serialization.get_unsafe_globals_in_checkpoint(file)
    except ValueError:  # torch's format before 1.6, which is read as well, but must hold tensors alone
        return []


def _tensors_in(content: Mapping[Any, Any], prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    for key, value in content.items():
        if isinstance(value, Tensor):
            yield f"{prefix}{key}", value
        elif isinstance(value, Mapping):
            yield from _tensors_in(value, f"{prefix}{key}.")
