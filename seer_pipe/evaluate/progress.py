"""The state of a training that an evaluation needs, kept until it is finished: a stopped one continues from there.

RUN/evaluation/unfinished/DIGEST/step-…    checkpoints as a run has them; DIGEST is of all that decides the result
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch.distributed as dist

from seer_pipe.distributed.world import World
from seer_pipe.evaluate.results import FOLDER
from seer_pipe.store import READ_ONLY, FolderStore
from seer_pipe.train.checkpoint import Checkpoints, Tensors, damage
from seer_pipe.train.storage import DamagedError

EVERY = 60.0  # seconds of training that a stop may cost, at least


class Progress:
    """The newest state of one training, whose ``tensors`` are alike on all ranks. All ranks call each method.

    ``identity``: JSON values; a training with others has a state of its own. Where ``path`` cannot be written to, a
    line says so, and nothing is kept.
    """

    def __init__(
        self, path: Path, identity: Mapping[str, Any], tensors: Tensors, world: World, say: Callable[[str], None]
    ) -> None:
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()[:16]
        self.folder = path / FOLDER / "unfinished" / digest
        self._tensors, self._world, self._say = tensors, world, say
        self._saved = time.monotonic()
        self._group = dist.new_group(backend="gloo") if world.size > 1 else None
        self._checkpoints = Checkpoints(FolderStore(self.folder), self._group) if world.first(self._prepare) else None

    def _prepare(self) -> bool:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            if error.errno not in READ_ONLY:
                raise
            self._say(f"{self.folder}: {error.strerror}: if this is stopped, it starts over")
            return False
        return True

    def resume(self) -> dict[str, Any]:
        """Load the newest state that is whole into the tensors, and return what was kept with it; {"step": 0} if none
        was."""
        if self._checkpoints is None:
            return {"step": 0}
        if self._world.is_first:
            self._checkpoints.sweep()
        for step in reversed(self._world.first(self._checkpoints.steps)):
            try:
                found = self._checkpoints.open(step)
                found.load(self._tensors, self._group)
            except DamagedError as error:
                self._say(damage(step, error))
                continue
            self._say(f"resumed: {step} steps are finished")
            return found.state
        return {"step": 0}

    @property
    def due(self) -> bool:
        """Whether it is time to save, the same on all ranks."""
        return self._world.any(time.monotonic() - self._saved >= EVERY)

    def save(self, step: int, state: Mapping[str, Any]) -> None:
        """Keep the tensors as they are, with ``state`` in JSON values; the ones before are removed."""
        self._saved = time.monotonic()
        if self._checkpoints is None:
            return
        kept = self._checkpoints
        kept.wait()
        kept.save(step, self._tensors, state, committed=lambda: kept.tidy(1, step))

    def close(self) -> None:
        """Finish the save under way: of a training that is stopped it is the last."""
        if self._checkpoints is not None:
            self._checkpoints.wait()

    def remove(self) -> None:
        """It is finished."""
        self.close()
        self._world.barrier()
        if self._world.is_first and self._checkpoints is not None:
            shutil.rmtree(self.folder)
