"""DCP's plans for tensors of which a rank holds a flat part: a few boxes of the whole tensor, as any other sharding.

So a checkpoint says nothing of how a run was sharded, and any other way of sharding reads its own parts of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.distributed.checkpoint import DefaultLoadPlanner, DefaultSavePlanner
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorStorageMetadata
from torch.distributed.checkpoint.planner import LoadPlan, SavePlan, WriteItem, WriteItemType
from torch.distributed.checkpoint.planner_helpers import create_read_items_for_chunk_list

from seer_pipe.distributed.parts import Flat, flat_part

Flats = dict[str, Flat]


def separated(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], Flats]:
    """The tensors as plain ones, and what is known of those that are flat parts."""
    flats = {name: flat for name, tensor in tensors.items() if (flat := flat_part(tensor)) is not None}
    return {name: tensor.detach() for name, tensor in tensors.items()}, flats


class SavePlanner(DefaultSavePlanner):
    """Plans the boxes of flat parts in their place."""

    def __init__(self, flats: Flats) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._flats = flats

    def create_local_plan(self) -> SavePlan:
        plan = super().create_local_plan()
        self.plan = replace(plan, items=[new for item in plan.items for new in self._boxed(item)])
        return self.plan

    def _boxed(self, item: WriteItem) -> list[WriteItem]:
        name, data = item.index.fqn, item.tensor_data
        flat = self._flats.get(name)
        if flat is None or data is None:
            return [item]
        kind, whole = WriteItemType.SHARD, replace(data, size=flat.shape)
        return [
            WriteItem(MetadataIndex(name, box.offsets), kind, tensor_data=replace(whole, chunk=box))
            for box in _chunks(flat)
        ]

    def lookup_object(self, index: MetadataIndex) -> Any:
        flat = self._flats.get(index.fqn)
        return super().lookup_object(index) if flat is None else _box(self.state_dict[index.fqn], flat, index)


class LoadPlanner(DefaultLoadPlanner):
    """Reads into the boxes of flat parts."""

    def __init__(self, flats: Flats) -> None:
        super().__init__(flatten_state_dict=False, flatten_sharded_tensors=False)
        self._flats = flats

    def create_local_plan(self) -> LoadPlan:
        everything = self.state_dict
        self.state_dict = {name: tensor for name, tensor in everything.items() if name not in self._flats}
        plan = super().create_local_plan()
        self.state_dict = everything
        assert self.metadata is not None
        for name, flat in self._flats.items():
            about = self.metadata.state_dict_metadata[name]
            assert isinstance(about, TensorStorageMetadata)
            plan.items += create_read_items_for_chunk_list(name, about, _chunks(flat))
        return plan

    def lookup_tensor(self, index: MetadataIndex) -> Tensor:
        flat = self._flats.get(index.fqn)
        return super().lookup_tensor(index) if flat is None else _box(self.state_dict[index.fqn], flat, index)


def _chunks(flat: Flat) -> list[ChunkStorageMetadata]:
    return [ChunkStorageMetadata(torch.Size(offsets), torch.Size(sizes)) for offsets, sizes, _ in flat.boxes()]


def _box(tensor: Tensor, flat: Flat, index: MetadataIndex) -> Tensor:
    """That box of a flat part, as a view of it."""
    found = ((sizes, numbers) for offsets, sizes, numbers in flat.boxes() if offsets == tuple(index.offset or ()))
    sizes, numbers = next(found)
    return tensor[numbers].view(sizes)
