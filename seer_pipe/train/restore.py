"""What of a run goes into a checkpoint, and how it comes back."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from seer_pipe import config as settings
from seer_pipe.distributed.collectives import local
from seer_pipe.distributed.parts import flat_part, mark, whole_shape
from seer_pipe.distributed.world import World
from seer_pipe.errors import UserError
from seer_pipe.objectives.base import Objective
from seer_pipe.store import Store
from seer_pipe.train.checkpoint import Checkpoint, Checkpoints, Tensors, damage
from seer_pipe.train.storage import DamagedError
from seer_pipe.train.syncbn import SyncBatchNorm

#: So many saves in a row may fail, as where a store is away for a while, before the run ends.
FAILED_SAVES = 3
#: What to do where a checkpoint has something else in common with its run than it must.
CALLED = {"shards": "shard set", "plan": "order of its images", "views": "version of the views"}
ADVICE = {
    "shards": "train a changed shard set in another folder",
    "plan": "excluded.parquet, a setting or the repeats of data, the seed or this program's order changed; put it "
    "back, or train in another folder",
    "views": "its crops would change; finish the run with the release that began it, or train in another folder",
}


def zero_state(optimizer: Optimizer) -> None:
    """Give every parameter its state now: zeros, which is where each optimiser begins. All ranks must call it.

    So a checkpoint always holds the same names, and a load finds a place for each. Learning rates must be 0.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for parameter in parameters:
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    for state in optimizer.state.values():
        for value in state.values():
            if isinstance(value, Tensor):
                value.zero_()


def training_state(network: nn.Module, optimizer: Optimizer) -> Tensors:
    """All tensors of a network and its optimiser by their names in a checkpoint, as they live here. All ranks must call
    it."""
    return {
        **{f"network/{name}": tensor for name, tensor in network.state_dict(keep_vars=True).items()},
        **{
            f"optimizer/{name}/{key}": _cut_as(parameter, value)
            for name, parameter in network.named_parameters()
            if parameter in optimizer.state  # momentum copies have none
            for key, value in sorted(optimizer.state[parameter].items())
            if isinstance(value, Tensor)
        },
    }


def run_state(network: nn.Module, optimizer: Optimizer, objective: Objective) -> Tensors:
    """As `training_state`, and what the objective keeps."""
    return {
        **training_state(network, optimizer),
        **{f"objective/{name}": tensor for name, tensor in objective.state_dict().items()},
    }


def _cut_as(parameter: Tensor, value: Tensor) -> Tensor:
    """What an optimiser keeps of a parameter, known as a part where the parameter is one."""
    return mark(value.detach(), flat_part(parameter)) if value.shape == parameter.shape else value


def agreed_statistics(network: nn.Module) -> Tensors:
    """The running statistics of BatchNorms that not all ranks share, as means over all ranks, by their names.

    A checkpoint holds one copy of a buffer, whichever rank wrote it, so the copies must not differ.
    """
    buffers = {
        f"network/{name}.{key}": buffer
        for name, module in network.named_modules()
        if isinstance(module, _BatchNorm) and not (isinstance(module, SyncBatchNorm) and module.process_group is None)
        for key, buffer in module.named_buffers()
        if buffer.is_floating_point()
    }
    if not buffers or not dist.is_initialized() or dist.get_world_size() == 1:
        return {}
    flat = torch.cat([buffer.flatten() for buffer in buffers.values()])
    dist.all_reduce(flat)
    means = (flat / dist.get_world_size()).split([buffer.numel() for buffer in buffers.values()])
    return {name: mean.view_as(buffer) for (name, buffer), mean in zip(buffers.items(), means, strict=True)}


def restore(
    found: Checkpoint,
    network: nn.Module,
    optimizer: Optimizer,
    objective: Objective,
    group: dist.ProcessGroup | None = None,
) -> None:
    """Load a checkpoint into a run, whatever number of ranks or sharding it was saved with. All ranks must call it.

    UserError where it is of another network or optimiser; DamagedError, on all ranks, where its files are damaged.
    """
    target = {
        name: tensor
        for name, tensor in run_state(network, optimizer, objective).items()
        if not name.startswith("objective/") or isinstance(tensor, DTensor)  # a rank's part is enough for it
    }
    kept = {name: stored.shape for name, stored in found.index.items() if not name.startswith("objective/")}
    own = {name: tuple(whole_shape(tensor)) for name, tensor in target.items() if not name.startswith("objective/")}
    if kept != own:
        differing = sorted(name for name in kept.keys() | own.keys() if kept.get(name) != own.get(name))
        name = differing[0]
        raise UserError(
            f"{found.store.url}/{found.folder}: checkpoint of another model or optimiser: {len(differing)} tensors "
            f"differ, first {name} ({kept.get(name, 'none')} there, {own.get(name, 'none')} here)"
        )
    lent = {
        name: torch.empty(stored.shape, dtype=stored.dtype)
        for name, stored in found.index.items()
        if name.startswith("objective/") and name not in target
    }
    found.load(target | lent, group)
    objective.load_state_dict({name.removeprefix("objective/"): tensor for name, tensor in lent.items()})


class Saver:
    """Keeps the tensors of one run in its checkpoints. All ranks call each of its methods.

    ``identity``: what a checkpoint must have in common with this run, by name.
    """

    def __init__(
        self,
        store: Store,
        *,
        network: nn.Module,
        optimizer: Optimizer,
        objective: Objective,
        train: settings.Train,
        identity: Mapping[str, str],
        world: World,
        say: Callable[[str], None],
        log_event: Callable[..., None],
    ) -> None:
        self._parts = network, optimizer, objective
        self._train, self._identity, self._world, self._say, self._log_event = train, identity, world, say, log_event
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None
        self._checkpoints = Checkpoints(store, self._group)
        self._failed = 0  # saves in a row
        self._milestone = 0  # multiples of keep_every_images that are behind the run
        self.saved: int | None = None  # the step of the last save, or of what was restored

    def clean(self, *, over: bool) -> None:
        """Remove what was never committed, and where the run starts ``over`` what was."""
        if self._world.is_first:
            if over:
                self._checkpoints.give_up_after(-1)
            self._checkpoints.sweep()

    def restore(self, healthy: bool = False) -> dict[str, Any] | None:
        """Load the newest checkpoint that is whole, and ``healthy``: not saved while steps were being skipped, and then
        those past it are given up.

        Returns its state; None where there never was a checkpoint, UserError where none can be used.
        """
        steps = self._world.gather(self._checkpoints.steps() if self._world.is_first else None)[0]
        for step in reversed(steps):
            try:
                found = self._open(step)
                if healthy and found.state.get("skipped"):
                    continue
                restore(found, *self._parts, self._group)
            except DamagedError as error:
                self._say(damage(step, error))
                self._log_event("warning", step, reason=damage(step, error))
                continue
            if healthy and self._world.is_first:
                self._checkpoints.give_up_after(step)
            self.saved, self._milestone = step, self._milestones(found.state["images"])
            return found.state
        if steps:
            which = "whole and of a step in health" if healthy else "whole"
            raise UserError(
                f"{self._checkpoints.store.url}: none of the {len(steps)} checkpoints is {which}; --fresh starts over"
            )
        return None

    def save(self, state: Mapping[str, Any], knn: float | None = None) -> None:
        """Begin a checkpoint of step ``state["step"]``; training may continue. One begun before is finished first."""
        self.finish()
        step, milestone = state["step"], self._milestones(state["images"])
        marks: dict[str, Any] = {} if knn is None else {"knn": knn}
        if milestone > self._milestone:
            marks["keep"] = True
        if state["skipped"]:
            marks["skipped"] = state["skipped"]

        def committed() -> None:
            self._milestone = milestone
            self._log_event("checkpoint", step)
            try:
                self._checkpoints.tidy(self._train.keep, step)
            except OSError as error:
                self._log_event("warning", step, reason=f"old checkpoints could not be removed: {error}")

        network = self._parts[0]
        tensors = run_state(*self._parts) | agreed_statistics(network)
        self.saved = step
        with self._reported_once():
            self._checkpoints.save(step, tensors, {**self._identity, **state}, marks=marks, committed=committed)

    def finish(self, must: bool = False) -> None:
        """Wait for the save under way. One that fails is reported; raised where it ``must`` succeed or many failed."""
        try:
            with self._reported_once():
                self._checkpoints.wait(unchanged=must)
            self._failed = 0
        except UserError:
            raise
        except Exception as error:
            self._failed += 1
            reason = f"the checkpoint of step {self.saved} could not be saved: {error}"
            if self._world.is_first:
                with suppress(OSError):  # what was written of it takes the room that the next one needs
                    self._checkpoints.sweep()
            ends = must or self._failed == FAILED_SAVES
            self._say(f"warning: {reason}; {'the same command resumes' if ends else 'training continues'}")
            if ends:
                raise
            self._log_event("warning", self.saved, reason=reason)
            self.saved = None

    @contextmanager
    def _reported_once(self) -> Iterator[None]:
        """Says so where saving beside the training ceased to work meanwhile."""
        before = self._checkpoints.problem
        try:
            yield
        finally:
            problem = self._checkpoints.problem
            if before is None and problem is not None:
                reason = f"checkpoints cannot be saved beside the training here, which waits for them now: {problem!r}"
                self._say(f"warning: {reason}")
                self._log_event("warning", self.saved, reason=reason)

    def rehearse(self, state: Mapping[str, Any], extra: int) -> None:
        """Save and load once, before hours of work depend on it, and see that there is room for all to be kept.

        ``extra``: checkpoints that are kept besides the newest.
        """
        if self.saved != state["step"]:  # else a start before this one was killed in its rehearsal, or refused
            self.save(state)
            self.finish(must=True)
        before = {name: local(tensor).clone() for name, tensor in run_state(*self._parts).items()}
        self.restore()
        after = run_state(*self._parts)
        if not all(torch.equal(local(after[name]), tensor) for name, tensor in before.items()):
            raise RuntimeError("what was loaded is not what was saved")
        problem = self._too_full(state["step"], extra) if self._world.is_first else None
        problem = self._world.gather(problem)[0]
        if problem:
            raise UserError(problem)

    def _too_full(self, step: int, extra: int) -> str | None:
        store = self._checkpoints.store
        root = store.local_path("")
        if root is None:
            return None
        size = self._checkpoints.size(step)
        needed = size * (self._train.keep + extra)  # one is there, another is written before the oldest goes
        free = shutil.disk_usage(root).free
        if free >= needed:
            return None
        return (
            f"{root}: {free / 1e9:.1f} GB are free, and {self._train.keep + extra} more checkpoints of "
            f"{size / 1e9:.2f} GB are to be kept: make room, or lower train.keep or raise train.keep_every_images"
        )

    def _milestones(self, images: int) -> int:
        return images // self._train.keep_every_images if self._train.keep_every_images else 0

    def _open(self, step: int) -> Checkpoint:
        """The same on all ranks, or the same error."""
        found: Checkpoint | None = None
        problem: Exception | None = None
        try:
            found = self._checkpoints.open(step)
        except (DamagedError, UserError) as error:
            problem = error
        problem = next((other for other in self._world.gather(problem) if other is not None), None)
        if problem is not None:
            raise problem
        assert found is not None
        for name, now in self._identity.items():
            if name == "plan" and found.state["config"]["train"]["batch"] != self._train.batch:
                continue  # changed on purpose: another batch has another order
            kept = str(found.state.get(name, "unknown"))
            if kept != now:
                raise UserError(
                    f"{self._checkpoints.store.url}: the checkpoint was made with another {CALLED[name]} "
                    f"({kept[:12]}, now {now[:12]}): {ADVICE[name]}"
                )
        return found
