"""The bytes of a checkpoint in a store: what torch.distributed.checkpoint (DCP) plans, as safetensors and JSON.

DCP decides which rank writes what of each tensor, and who reads what under another sharding; its own file formats
hold pickles, so the formats here are ours. A rank's file names its tensors ``NAME`` or, for a part of one,
``NAME@OFFSETS``; ``index.json`` says for every tensor its type, its whole shape and its parts.
"""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import torch
from safetensors.torch import load as from_safetensors
from safetensors.torch import save as to_safetensors
from torch.distributed.checkpoint import Metadata, SavePlan, StorageReader, StorageWriter
from torch.distributed.checkpoint.metadata import (
    ChunkStorageMetadata,
    MetadataIndex,
    TensorProperties,
    TensorStorageMetadata,
)
from torch.distributed.checkpoint.planner import LoadPlan, LoadPlanner, SavePlanner, WriteItem
from torch.distributed.checkpoint.storage import WriteResult
from torch.futures import Future

from seer_pipe.store import Store

#: A rank writes files of about so many bytes, WRITERS at a time: the host memory that a save takes besides the copy.
FILE_BYTES = 128 << 20
WRITERS = 4


class DamagedError(OSError):
    """A file is gone, or not what was committed."""


@dataclass(frozen=True)
class Part:
    """A box of a tensor: where it begins in it, its sizes, and the file and key it is kept under."""

    file: str
    key: str
    offsets: tuple[int, ...]
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as it is kept: type, whole shape, and its parts."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    parts: list[Part] = field(default_factory=list)


Index = dict[str, StoredTensor]
Files = dict[str, dict[str, Any]]  # size in bytes and SHA-256 by name


def digest(data: bytes) -> dict[str, Any]:
    return {"size": len(data), "sha256": hashlib.sha256(data).hexdigest()}


def read_checked(store: Store, folder: str, name: str, files: Files) -> bytes:
    """One committed file; DamagedError where it is not what ``files`` says."""
    try:
        data = store.get(f"{folder}/{name}")
    except FileNotFoundError:
        raise DamagedError(f"{store.url}/{folder}/{name}: gone") from None
    if hashlib.sha256(data).hexdigest() != files[name]["sha256"]:
        raise DamagedError(f"{store.url}/{folder}/{name}: not what was committed")
    return data


def index_to_json(index: Index) -> bytes:
    tree = {
        name: {
            "dtype": str(stored.dtype).removeprefix("torch."),
            "shape": stored.shape,
            "parts": [[part.file, part.offsets, part.sizes] for part in stored.parts],
        }
        for name, stored in index.items()
    }
    return json.dumps(tree).encode()


def index_from_json(data: bytes) -> Index:
    return {
        name: StoredTensor(
            getattr(torch, about["dtype"]),
            tuple(about["shape"]),
            [Part(file, _key(name, offsets), tuple(offsets), tuple(sizes)) for file, offsets, sizes in about["parts"]],
        )
        for name, about in json.loads(data).items()
    }


class Writer(StorageWriter):
    """Writes one checkpoint into ``folder``; ``commit`` is called once, on the first rank, when all have written.

    ``commit(files, index)`` gets the size and hash of every file of every rank.
    """

    def __init__(self, store: Store, folder: str, rank: int, commit: Callable[[Files, Index], None]) -> None:
        self._store, self._folder, self._rank, self._commit = store, folder, rank, commit

    def write_data(self, plan: SavePlan, planner: SavePlanner) -> Future[list[WriteResult]]:
        with ThreadPoolExecutor(WRITERS, thread_name_prefix="checkpoint") as pool:
            groups = [(f"{self._rank:05d}-{n:04d}.safetensors", items) for n, items in enumerate(_groups(plan.items))]
            written = pool.map(lambda group: self._write(group[0], group[1], planner), groups)
            return _done([result for results in written for result in results])

    def _write(self, name: str, items: Sequence[WriteItem], planner: SavePlanner) -> list[WriteResult]:
        tensors: dict[str, torch.Tensor] = {}
        for item in items:
            tensor = planner.resolve_data(item)
            assert isinstance(tensor, torch.Tensor)
            tensors[_key(item.index.fqn, item.index.offset or ())] = tensor.detach().contiguous()
        data = to_safetensors(tensors)
        self._store.put(f"{self._folder}/{name}", data)
        wrote = name, digest(data)
        return [WriteResult(item.index, len(data), wrote) for item in items]

    def finish(self, metadata: Metadata, results: list[list[WriteResult]]) -> None:
        wrote = {result.index: result.storage_data for rank in results for result in rank}
        files: Files = dict(wrote.values())
        index: Index = {}
        for name, about in metadata.state_dict_metadata.items():
            assert isinstance(about, TensorStorageMetadata)
            index[name] = StoredTensor(about.properties.dtype, tuple(about.size))
            for chunk in about.chunks:
                file, _ = wrote[MetadataIndex(name, chunk.offsets)]
                part = Part(file, _key(name, chunk.offsets), tuple(chunk.offsets), tuple(chunk.sizes))
                index[name].parts.append(part)
        self._commit(files, index)

    def reset(self, checkpoint_id: Any = None) -> None: ...
    def set_up_storage_writer(self, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_global_plan(self, plans: list[SavePlan]) -> list[SavePlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


class PartReader(StorageReader):
    """Reads those files of the checkpoint in ``folder`` that hold what this rank needs, each once and whole."""

    def __init__(self, store: Store, folder: str, files: Files, index: Index) -> None:
        self._store, self._folder, self._files, self._index = store, folder, files, index

    def read_metadata(self, *args: Any, **kwargs: Any) -> Metadata:
        about: dict[str, Any] = {}
        for name, stored in self._index.items():
            boxes = [ChunkStorageMetadata(torch.Size(part.offsets), torch.Size(part.sizes)) for part in stored.parts]
            about[name] = TensorStorageMetadata(TensorProperties(stored.dtype), torch.Size(stored.shape), boxes)
        return Metadata(about)

    def read_data(self, plan: LoadPlan, planner: LoadPlanner) -> Future[None]:
        by_file = defaultdict(list)
        for item in plan.items:
            name, offset = item.storage_index.fqn, tuple(item.storage_index.offset or ())
            part = next(part for part in self._index[name].parts if part.offsets == offset)
            by_file[part.file].append((part.key, item))
        for file, items in sorted(by_file.items()):
            tensors = from_safetensors(read_checked(self._store, self._folder, file, self._files))
            for key, item in items:
                spans = zip(item.storage_offsets, item.lengths, strict=True)
                box = tensors[key][tuple(slice(start, start + length) for start, length in spans)]
                planner.resolve_tensor(item).detach().copy_(box)
        return _done(None)

    def reset(self, checkpoint_id: Any = None) -> None: ...
    def set_up_storage_reader(self, metadata: Metadata, is_coordinator: bool, *args: Any, **kwargs: Any) -> None: ...

    def prepare_local_plan(self, plan: LoadPlan) -> LoadPlan:
        return plan

    def prepare_global_plan(self, plans: list[LoadPlan]) -> list[LoadPlan]:
        return plans

    @classmethod
    def validate_checkpoint_id(cls, checkpoint_id: Any) -> bool:
        return True


def _key(name: str, offsets: Iterable[int]) -> str:
    offsets = tuple(offsets)
    return f"{name}@{','.join(map(str, offsets))}" if any(offsets) else name


def _groups(items: Iterable[WriteItem]) -> Iterator[list[WriteItem]]:
    """Consecutive items of about FILE_BYTES together."""
    group: list[WriteItem] = []
    size = 0
    for item in items:
        assert item.tensor_data is not None, f"{item.index.fqn}: not a tensor"
        bytes_ = item.tensor_data.chunk.sizes.numel() * item.tensor_data.properties.dtype.itemsize
        if group and size + bytes_ > FILE_BYTES:
            yield group
            group, size = [], 0
        group.append(item)
        size += bytes_
    if group:
        yield group


def _done(value: Any) -> Future[Any]:
    future: Future[Any] = Future()
    future.set_result(value)
    return future
