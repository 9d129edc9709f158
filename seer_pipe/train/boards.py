"""Where a run's curves can be watched besides metrics.jsonl: TensorBoard, Weights & Biases, MLflow (``train.log_to``).

metrics.jsonl is the truth. The first row that a board is sent is the one after the last that it holds, so no step
stands there twice; MLflow says itself which that is, so after a kill it is given what it lacks. Weights & Biases has no
way to say it: rows that its process had not written when a run was killed by SIGKILL are missing there. Neither takes
anything back: of steps that were repeated after a rollback they keep what was logged first.
"""

from __future__ import annotations

import importlib.util
import json
import os
import secrets
import sys
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol

from seer_pipe.config import BoardName, Config, flat
from seer_pipe.errors import UserError
from seer_pipe.store import FolderStore

PROJECT = "seer_pipe"  # or what WANDB_PROJECT or MLFLOW_EXPERIMENT_NAME says


class Board(Protocol):
    """``last_step``: the last step that it holds."""

    last_step: int

    def write(self, step: int, values: Mapping[str, float]) -> None: ...

    def flush(self) -> None:
        """What a kill of this process could still take from it is written."""
        ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Opening:
    """What a board is opened with: the run, its last finished step, and the last step that metrics.jsonl had."""

    run: Path
    config: Config
    after: int
    written: int

    def identity(self, board: BoardName) -> str | None:
        """The name that the board knows this run by."""
        found: str | None = self._known().get(board)
        return found

    def keep(self, board: BoardName, identity: str) -> None:
        FolderStore(self.run).put("boards.json", json.dumps(self._known() | {board: identity}).encode())

    def _known(self) -> dict[str, str]:
        file = self.run / "boards.json"
        known: dict[str, str] = json.loads(file.read_text()) if file.exists() else {}
        return known


class TensorBoard:
    """RUN/tensorboard, from which a resume takes back what was written past its checkpoint."""

    package: ClassVar = "tensorboard"

    def __init__(self, opening: Opening) -> None:
        from torch.utils.tensorboard import SummaryWriter

        folder = opening.run / "tensorboard"
        # Readers go through the files by name, which begins with the second: of two in one, the older might be last.
        while any(folder.glob(f"events.out.tfevents.{int(time.time())}.*")):
            time.sleep(0.05)
        self._writer = SummaryWriter(str(folder), purge_step=opening.after + 1, flush_secs=30)
        self.last_step = opening.after

    def write(self, step: int, values: Mapping[str, float]) -> None:
        for name, value in values.items():
            self._writer.add_scalar(name, value, step)

    def flush(self) -> None:
        self._writer.flush()

    def close(self) -> None:
        self._writer.close()


class Wandb:
    """A run of Weights & Biases; WANDB_MODE=offline keeps it in RUN/wandb, for ``wandb sync --append``."""

    package: ClassVar = "wandb"

    def __init__(self, opening: Opening) -> None:
        import wandb

        known = opening.identity("wandb")
        name = known or secrets.token_hex(4)
        try:
            self._run = wandb.init(
                project=os.environ.get("WANDB_PROJECT", PROJECT), name=opening.config.name, id=name, resume="allow",
                dir=opening.run, config=opening.config.model_dump(mode="json"),
                settings=wandb.Settings(console="off", silent=True),
            )  # fmt: skip
        except wandb.errors.Error as error:
            raise UserError(f"train.log_to: wandb: {error}; wandb login, or WANDB_MODE=offline") from None
        opening.keep("wandb", name)
        self.last_step = opening.written if known else 0

    def write(self, step: int, values: Mapping[str, float]) -> None:
        self._run.log(dict(values), step=step, commit=True)

    def flush(self) -> None:
        pass  # its own process has it

    def close(self) -> None:
        self._run.finish()


class Mlflow:
    """A run of MLflow, on the server of MLFLOW_TRACKING_URI or in RUN/mlflow.db. Training never waits for it."""

    package: ClassVar = "mlflow"

    def __init__(self, opening: Opening) -> None:
        from mlflow.exceptions import MlflowException
        from mlflow.tracking import MlflowClient

        place = os.environ.get("MLFLOW_TRACKING_URI", f"sqlite:///{(opening.run / 'mlflow.db').absolute()}")
        try:
            self._client = MlflowClient(tracking_uri=place)
            identity = opening.identity("mlflow")
            self._run = identity or self._create(opening)
            self._client.update_run(self._run, status="RUNNING")
            seen = self._client.get_metric_history(self._run, "images")
        except MlflowException as error:
            raise UserError(f"train.log_to: mlflow at {place}: {error}") from None
        if identity is None:
            opening.keep("mlflow", self._run)
        self.last_step = max((metric.step for metric in seen), default=0)
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="mlflow")
        self._failed = False

    def _create(self, opening: Opening) -> str:
        name = os.environ.get("MLFLOW_EXPERIMENT_NAME", PROJECT)
        there = self._client.get_experiment_by_name(name)
        experiment = there.experiment_id if there else self._client.create_experiment(name)
        run: str = self._client.create_run(experiment, run_name=opening.config.name).info.run_id
        for key, value in flat(opening.config.model_dump(mode="json")):
            self._client.log_param(run, key, value)
        return run

    def write(self, step: int, values: Mapping[str, float]) -> None:
        from mlflow.entities import Metric

        now = int(time.time() * 1000)
        row = [Metric(name, value, now, step) for name, value in values.items()]
        self._thread.submit(self._client.log_batch, self._run, row).add_done_callback(self._look)

    def flush(self) -> None:
        pass  # what it lacks it is given at the next start, and training does not wait for it

    def _look(self, done: Future[Any]) -> None:
        if (error := done.exception()) is not None and not self._failed:
            self._failed = True
            print(f"warning: mlflow: {error}; metrics.jsonl has what is missing there", file=sys.stderr)

    def close(self) -> None:
        self._thread.shutdown()
        if not self._failed:
            self._client.set_terminated(self._run)


BOARDS: dict[BoardName, type[TensorBoard] | type[Wandb] | type[Mlflow]] = {
    "tensorboard": TensorBoard, "wandb": Wandb, "mlflow": Mlflow,
}  # fmt: skip


def check_boards(names: Sequence[BoardName]) -> None:
    """UserError where the package of one is not installed."""
    for name in names:
        if importlib.util.find_spec(BOARDS[name].package) is None:
            raise UserError(f"train.log_to: {name} is not installed: pip install 'seer-pipe[{name}]'")
