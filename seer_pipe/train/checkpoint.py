"""Checkpoints that exist when they are committed.

    RUN/checkpoints/step-00001000/
        network.safetensors      parameters and buffers by name
        optimizer.safetensors    NAME/momentum_buffer, …
        objective.safetensors    logical state, the same for any world size
        state.json               step, images, plan, config, format version
        COMMITTED.json           size and SHA-256 of each of the above; written last

A folder without COMMITTED.json does not exist. Tensors are whole (logical), so any world size and any way of
sharding loads them, and nothing that is loaded can run code.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch import nn
from torch.optim import Optimizer

from seer_pipe.errors import UserError
from seer_pipe.store import Store
from seer_pipe.train.parallel import assign, like, whole

FORMAT_VERSION = 1
MARKER = "COMMITTED.json"

Tensors = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Checkpoint:
    """What a committed checkpoint holds, verified."""

    state: dict[str, Any]
    network: Tensors
    optimizer: Tensors
    objective: Tensors


class Checkpoints:
    """The checkpoints of one run, in a store of their own; only the first rank writes."""

    def __init__(self, store: Store) -> None:
        self.store = store

    def steps(self) -> list[int]:
        """The steps of the committed checkpoints, in order."""
        found = (re.fullmatch(rf"step-(\d+)/{MARKER}", entry.path) for entry in self.store.list())
        return sorted(int(match[1]) for match in found if match)

    def save(self, step: int, parts: Mapping[str, Tensors], state: Mapping[str, Any]) -> None:
        """Write everything, then the marker."""
        files = {f"{name}.safetensors": to_safetensors(tensors) for name, tensors in parts.items()}
        about = {"format_version": FORMAT_VERSION, "step": step, **state}
        files["state.json"] = json.dumps(about, indent=1).encode()
        marker = {}
        for name, data in files.items():
            self.store.put(f"{_folder(step)}/{name}", data)
            marker[name] = {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        self.store.put(f"{_folder(step)}/{MARKER}", json.dumps(marker, indent=1).encode())

    def load(self, step: int) -> Checkpoint:
        """Read one checkpoint; ``OSError`` where a file is not what was committed."""
        folder = _folder(step)
        marker = json.loads(self.store.get(f"{folder}/{MARKER}"))
        files = {}
        for name, expected in marker.items():
            files[name] = self.store.get(f"{folder}/{name}")
            if hashlib.sha256(files[name]).hexdigest() != expected["sha256"]:
                raise OSError(f"{self.store.url}/{folder}/{name}: not what was committed")
        state = json.loads(files["state.json"])
        if state["format_version"] > FORMAT_VERSION:
            raise UserError(
                f"{self.store.url}/{folder}: checkpoint format {state['format_version']}; this seer_pipe reads "
                f"up to {FORMAT_VERSION}: upgrade it"
            )
        parts = ("network", "optimizer", "objective")
        return Checkpoint(state, *(from_safetensors(files[f"{part}.safetensors"]) for part in parts))

    def latest(self, warn: Any) -> Checkpoint | None:
        """The newest checkpoint that is whole; ``warn`` is told of each that is not."""
        for step in reversed(self.steps()):
            try:
                return self.load(step)
            except OSError as error:
                warn(f"checkpoint of step {step} is damaged, going back to the one before: {error}")
        return None

    def tidy(self, keep: int) -> None:
        """Remove all but the ``keep`` newest, and whatever was never committed."""
        kept = {_folder(step) for step in self.steps()[-keep:]}
        entries = [entry.path for entry in self.store.list() if entry.path.split("/")[0] not in kept]
        for path in sorted(entries, key=lambda path: not path.endswith(MARKER)):  # it stops existing first
            self.store.delete(path)


def _folder(step: int) -> str:
    return f"step-{step:08d}"


def network_state(network: nn.Module) -> Tensors:
    """Every parameter and buffer, whole. All ranks must call it."""
    return {name: whole(tensor) for name, tensor in network.state_dict().items()}


def load_network(network: nn.Module, tensors: Tensors) -> None:
    own = network.state_dict()
    if own.keys() != tensors.keys():
        lacking, more = sorted(own.keys() - tensors.keys()), sorted(tensors.keys() - own.keys())
        raise UserError(f"checkpoint of another network: lacks {lacking[:3]}, has {more[:3]} besides")
    for name, tensor in own.items():
        assign(tensor, tensors[name])


def optimizer_state(network: nn.Module, optimizer: Optimizer) -> Tensors:
    """``NAME/KEY`` for each tensor that the optimiser keeps of a parameter. All ranks must call it."""
    return {
        f"{name}/{key}": whole(value)
        for name, parameter in network.named_parameters()
        for key, value in sorted(optimizer.state.get(parameter, {}).items())
        if isinstance(value, torch.Tensor)
    }


def load_optimizer(network: nn.Module, optimizer: Optimizer, tensors: Tensors) -> None:
    parameters = dict(network.named_parameters())
    for path, value in tensors.items():
        name, key = path.rsplit("/", 1)
        parameter = parameters[name]
        # a counter is a number of its own, not shaped and sharded as the parameter is
        placed = like(value, parameter) if value.shape == parameter.shape else value
        optimizer.state[parameter][key] = placed
