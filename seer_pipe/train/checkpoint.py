"""Checkpoints that exist when they are committed.

    RUN/checkpoints/step-00001000/
        00000-0000.safetensors   what the first rank wrote, in files of a bounded size; 00001-… the second rank
        index.json               of every tensor: type, whole shape, and which file holds which part
        state.json               step, images, plan, config
        COMMITTED.json           format version, size and SHA-256 of each of the above, and of itself; written last

A folder without COMMITTED.json does not exist. Names are ``network/…``, ``optimizer/PARAMETER/…``, ``objective/…``,
and tensors are logical, so any number of ranks and any way of sharding loads them, each rank its part alone. Nothing
that is loaded can run code.
"""

from __future__ import annotations

import hashlib
import json
import re
import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.staging import DefaultStager, StagingOptions

from seer_pipe.errors import UserError
from seer_pipe.store import Store
from seer_pipe.train.committed import MARKER, committed_steps
from seer_pipe.train.plans import LoadPlanner, SavePlanner, separated
from seer_pipe.train.storage import (
    DamagedError,
    Files,
    Index,
    PartReader,
    Writer,
    digest,
    index_from_json,
    index_to_json,
    read_checked,
)

FORMAT_VERSION = 3

Tensors = dict[str, torch.Tensor]

warnings.filterwarnings("ignore", "torch.distributed is disabled")  # one process saves alone: nothing is wrong


class UnsavedError(OSError):
    """A checkpoint was saved in neither way."""


@dataclass(frozen=True)
class Checkpoint:
    """A committed checkpoint whose tensors are not read yet."""

    store: Store
    folder: str
    files: Files
    state: dict[str, Any]
    index: Index

    def load(self, tensors: Tensors, group: dist.ProcessGroup | None = None) -> None:
        """Read into ``tensors`` in place, each rank what it holds of them; every rank of ``group`` must call it.

        DamagedError, on all ranks, where a file is not what was committed.
        """
        reader = PartReader(self.store, self.folder, self.files, self.index)
        plain, flats = separated(tensors)
        with _plain_errors():
            dcp.load(
                plain, storage_reader=reader, planner=LoadPlanner(flats), process_group=group, no_dist=group is None
            )

    def whole(self, part: str) -> Tensors:
        """All of ``network``, ``optimizer`` or ``objective`` in this process, by the names without that prefix."""
        tensors = {
            name: torch.empty(stored.shape, dtype=stored.dtype)
            for name, stored in self.index.items()
            if name.startswith(f"{part}/")
        }
        self.load(tensors)
        return {name.removeprefix(f"{part}/"): tensor for name, tensor in tensors.items()}


@dataclass(frozen=True)
class Latest:
    """What an evaluation or an export needs of a checkpoint: ``network``, whole tensors by name."""

    state: dict[str, Any]
    network: Tensors


class Checkpoints:
    """The checkpoints of one run, in a store of their own.

    ``group``: a gloo group of all ranks that nothing else uses, for a save runs beside the training; None for one
    process. At most one save is under way. ``problem``: what made saving beside the training fail, if anything but the
    store did; from then on saves are plain ones, which make the training wait.
    """

    def __init__(self, store: Store, group: dist.ProcessGroup | None = None) -> None:
        self.store, self._group = store, group
        self._rank = dist.get_rank(group) if group is not None else 0
        self._saving: Future[Any] | None = None
        self._plainly: Callable[[], Any] = _no_save
        self.problem: Exception | None = None
        self._known: dict[int, dict[str, Any]] = {}  # markers by step
        pinned = torch.cuda.is_available()
        options = StagingOptions(
            use_pinned_memory=pinned, use_shared_memory=False, use_async_staging=False, use_non_blocking_copy=pinned
        )
        self._stager = DefaultStager(options)

    def steps(self) -> list[int]:
        """The steps of the committed checkpoints, in order."""
        return committed_steps(self.store)

    def size(self, step: int) -> int:
        """Bytes of a checkpoint."""
        return sum(entry.size for entry in self.store.list(f"{_folder(step)}/"))

    def save(
        self,
        step: int,
        tensors: Tensors,
        state: Mapping[str, Any],
        *,
        marks: Mapping[str, Any] | None = None,
        committed: Callable[[], None] | None = None,
    ) -> None:
        """Begin to save; on return ``tensors`` may change again. All ranks must call it, after ``wait``.

        Where that fails, and not for the store's sake, it is saved again, synchronously, before this gives up.

        ``state``: JSON values; ``marks``: those that retention reads. ``committed`` is called on the first rank, from
        another thread, when the checkpoint exists.
        """
        assert self._saving is None
        folder, (plain, flats) = _folder(step), separated(tensors)

        def commit(files: Files, index: Index) -> None:
            own = {
                "index.json": index_to_json(index),
                "state.json": json.dumps({"step": step, **state}, indent=1).encode(),
            }
            for name, data in own.items():
                self.store.put(f"{folder}/{name}", data)
                files[name] = digest(data)
            marker = {"format_version": FORMAT_VERSION, "step": step, **(marks or {}), "files": files}
            self._known.pop(step, None)
            self.store.put(f"{folder}/{MARKER}", _sealed(marker))
            if committed is not None:
                committed()

        def saved(by: Callable[..., Any], **how: Any) -> Any:
            return by(
                cast(dict[str, Any], plain),
                storage_writer=Writer(self.store, folder, self._rank, commit),
                planner=SavePlanner(flats),
                process_group=self._group,
                no_dist=self._group is None,
                **how,
            )

        self._plainly = partial(saved, dcp.save)
        if self.problem is None:
            try:
                saving = saved(dcp.async_save, async_stager=self._stager)
                assert isinstance(saving, Future)
                self._saving = saving
                return
            except (OSError, UserError):
                raise
            except Exception as error:
                self.problem = error
        self._saving = self._saved_plainly()

    def wait(self, *, unchanged: bool = False) -> None:
        """Until the save under way is committed; raises what made it fail, on all ranks.

        ``unchanged``: the tensors are still those that ``save`` was given, so that it can be retried.
        """
        saving, self._saving = self._saving, None
        if saving is None:
            return
        try:
            with _plain_errors():
                saving.result()
        except (OSError, UserError):
            raise
        except Exception as error:
            first, self.problem = self.problem, self.problem or error
            if first is not None:
                raise UnsavedError(f"saving beside the training: {first!r}; and in a plain way: {error!r}") from error
            if not unchanged:
                raise
            self._saving = self._saved_plainly()
            self.wait()

    def _saved_plainly(self) -> Future[Any]:
        """Save now. The collectives are the same either way, so a rank that comes here alone still meets the others."""
        done: Future[Any] = Future()
        try:
            with _plain_errors():
                done.set_result(self._plainly())
        except Exception as error:
            done.set_exception(error)
        return done

    def open(self, step: int) -> Checkpoint:
        """What a checkpoint holds; DamagedError where a file is not what was committed."""
        folder, marker = _folder(step), self._marker(step)
        if (version := marker["format_version"]) != FORMAT_VERSION:
            raise UserError(
                f"{self.store.url}/{folder}: checkpoint format {version}; this seer_pipe reads format "
                f"{FORMAT_VERSION}: use the version that wrote it, or a newer one"
            )
        files = marker["files"]
        state = json.loads(read_checked(self.store, folder, "state.json", files))
        index = index_from_json(read_checked(self.store, folder, "index.json", files))
        return Checkpoint(self.store, folder, files, state, index)

    def latest(self, warn: Callable[[str], None]) -> Latest | None:
        """The newest checkpoint whose network is whole, in one process; ``warn`` is called for each that is not."""
        for step in reversed(self.steps()):
            try:
                found = self.open(step)
                return Latest(found.state, found.whole("network"))
            except DamagedError as error:
                warn(damage(step, error))
        return None

    def tidy(self, keep: int, newest: int) -> None:
        """After the save of step ``newest``: remove whatever was never committed, and of the committed ones all but the
        ``keep`` newest, those marked with ``keep``, the newest that is not marked with ``skipped``, and the one with
        the highest ``knn``.

        Those past ``newest`` are damaged: they count for nothing, and stay.
        """
        steps = self.steps()
        marks = {step: self._marks(step) for step in steps if step <= newest}
        kept = set(sorted(marks)[-keep:]) | {step for step in marks if marks[step].get("keep")}
        kept |= set([step for step in marks if marks[step] and not marks[step].get("skipped")][-1:])
        if probed := [step for step in marks if "knn" in marks[step]]:
            kept.add(max(probed, key=lambda step: marks[step]["knn"]))
        self._remove_all_but(kept | {step for step in steps if step > newest})

    def give_up_after(self, step: int) -> None:
        """Remove those past ``step``, or a resume would continue from them. While nothing is being saved."""
        self._remove_all_but({kept for kept in self.steps() if kept <= step})

    def sweep(self) -> None:
        """Remove what was never committed: of a process that was killed, or a save that failed. For the first rank,
        while nothing is being saved."""
        root = self.store.local_path("")
        for file in root.rglob(".tmp-*") if root else ():
            file.unlink(missing_ok=True)
        self._remove_all_but(set(self.steps()))

    def _remove_all_but(self, steps: set[int]) -> None:
        folders = {_folder(step) for step in steps}
        tops = ((entry.path, entry.path.split("/")[0]) for entry in self.store.list())
        gone = [path for path, top in tops if re.fullmatch(r"step-\d{8,}", top) and top not in folders]
        for path in sorted(gone, key=lambda path: not path.endswith(MARKER)):  # it stops existing first
            self.store.delete(path)

    def _marker(self, step: int) -> dict[str, Any]:
        path = f"{_folder(step)}/{MARKER}"
        try:
            return _unsealed(self.store.get(path))
        except (FileNotFoundError, ValueError):
            raise DamagedError(f"{self.store.url}/{path}: not what was committed") from None

    def _marks(self, step: int) -> dict[str, Any]:
        """The marker, read once, for a run has few and they do not change; nothing where it is damaged."""
        if step not in self._known:
            try:
                self._known[step] = self._marker(step)
            except DamagedError:
                self._known[step] = {}
        return self._known[step]


def _no_save() -> None:
    raise AssertionError("nothing was to be saved")


def damage(step: int, error: Exception) -> str:
    return f"checkpoint of step {step} is damaged, going back to the one before: {error}"


def _folder(step: int) -> str:
    return f"step-{step:08d}"


def _sealed(marker: dict[str, Any]) -> bytes:
    """As JSON that holds its own SHA-256: a single bit that flips in it is found as well."""
    return json.dumps({"sealed": _seal(marker), **marker}, indent=1).encode()


def _unsealed(data: bytes) -> dict[str, Any]:
    """ValueError where it is not what was sealed."""
    marker: dict[str, Any] = json.loads(data)
    if marker.pop("sealed", None) != _seal(marker):
        raise ValueError("not what was sealed")
    return marker


def _seal(marker: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(marker, sort_keys=True).encode()).hexdigest()


@contextmanager
def _plain_errors() -> Any:
    """Raise the first rank's own error instead of DCP's, which is no Exception and would pass every handler."""
    try:
        yield
    except dcp.CheckpointException as error:
        failures = [failure for _, (failure, _) in sorted(error.failures.items())]
        damaged = [failure for failure in failures if isinstance(failure, DamagedError)]
        raise (damaged or failures)[0] from error
