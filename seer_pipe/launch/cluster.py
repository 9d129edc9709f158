"""What a job asks for: a team's defaults in YAML, changed on the command line."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from seer_pipe.errors import UserError
from seer_pipe.section import Positive, Section, read_file, validate

FOLDER = Path("slurm/clusters")
VARIABLE = "SEER_PIPE_CLUSTER"  # names the defaults where the command line does not
UNITS = {"d": 24 * 60, "h": 60, "m": 1}


class Cluster(Section):
    """What a job asks for: a file in slurm/clusters, or options of launch."""

    cluster: Literal["auto", "slurm", "local", "kubernetes"] = Field(
        "auto",
        description="auto: Slurm where one answers, this machine otherwise; local: this machine; kubernetes: "
        "launch --dry-run prints a Job",
    )
    nodes: Positive = Field(1, description="machines of the run; train.batch must divide over all of their tasks")
    min_nodes: Positive | None = Field(None, description="continue with as few nodes when others fail; default: all")
    gpus_per_node: Annotated[int, Field(ge=0)] = Field(0, description="one task each; 0: on CPUs")
    tasks_per_node: Positive | None = Field(None, description="default: one per GPU, or one; to be set on CPUs")
    cpus_per_task: Positive | None = Field(
        None, description="cores; default: the cluster's. data.threads and one more at least"
    )
    mem: str | None = Field(None, description="of a node, as Slurm has it: 400G")
    time: str = Field("1d", description="3d, 12h, 90m; a longer run continues through requeues")
    partition: str | None = Field(None, description="Slurm's partition; default: the cluster's")
    account: str | None = Field(None, description="that the time is charged to, where the cluster wants one")
    qos: str | None = Field(None, description="Slurm's quality of service, where the cluster has several")
    constraint: str | None = Field(None, description="features that nodes must have, as Slurm has them: a100|h100")
    exclude: str | None = Field(None, description="nodes not to use: node[17,23]")
    dependency: str | None = Field(None, description="jobs to wait for, as Slurm has it: afterok:123")
    container: str | None = Field(None, description="image of the tasks, for pyxis (srun --container-image) or pods")
    mounts: str | None = Field(None, description="srun --container-mounts; of pods: CLAIM:/path,/of/the/node:/path")
    interface: str | None = Field(None, description="network of NCCL and gloo, where they choose a wrong one: ib0")
    env: dict[str, str] = Field({}, description="variables of every task: NCCL_IB_HCA: mlx5")
    setup: list[str] = Field([], description="lines of the batch script before the tasks: module load …")
    sbatch: dict[str, Any] = Field({}, description="further options of sbatch: {comment: pretraining}")
    srun: list[str] = Field([], description="further arguments of srun: [--mpi=none]")
    signal_s: Positive = Field(
        120,
        description="seconds before the time limit when the run is asked to stop; longer than a step and a checkpoint",
    )
    max_crashes: Annotated[int, Field(ge=0)] = Field(
        3, description="in a row, without a new checkpoint between, before the run has failed"
    )
    backoff_s: Positive = Field(30, description="seconds before the first restart after a crash; doubles each time")
    snapshot: bool = Field(False, description="run a copy of the code as it is now, so that edits reach no queued job")

    @model_validator(mode="after")
    def _fits_together(self) -> Cluster:
        if self.min_nodes is not None and self.min_nodes > self.nodes:
            raise ValueError("min_nodes is more than nodes")
        if self.tasks > 1 and self.nodes > self.fewest * self.tasks:
            raise ValueError(f"Slurm would start on {self.fewest * self.tasks} nodes at most: raise min_nodes")
        minutes(self.time)
        return self

    @property
    def tasks(self) -> int:
        """Tasks per node."""
        return self.tasks_per_node or self.gpus_per_node or 1

    @property
    def fewest(self) -> int:
        return self.min_nodes or self.nodes

    @property
    def variables(self) -> dict[str, str]:
        network = ("NCCL_SOCKET_IFNAME", "GLOO_SOCKET_IFNAME") if self.interface else ()
        return dict.fromkeys(network, self.interface or "") | self.env


def minutes(text: str) -> int:
    """``3d``, ``12h``, ``90m`` or a sum of them: ``1d12h``."""
    if not re.fullmatch(r"(\d+[dhm])+", text):
        raise ValueError(f"time {text!r}: write 3d, 12h, 90m or 1d12h")
    return sum(int(count) * UNITS[unit] for count, unit in re.findall(r"(\d+)([dhm])", text))


def load(name: str | None, changes: Mapping[str, Any]) -> Cluster:
    """The defaults ``name`` (a YAML file, or its name in slurm/clusters) with ``changes`` that are not None."""
    name = name or os.environ.get(VARIABLE)
    tree: Any = {}
    if name:
        path = Path(name) if name.endswith((".yaml", ".yml")) else FOLDER / f"{name}.yaml"
        tree = read_file(path) or {}
        if not isinstance(tree, dict):
            raise UserError(f"{path}: expected settings, found {type(tree).__name__}")
    changed = tree | {key: value for key, value in changes.items() if value is not None}
    return validate(Cluster, changed, name or "cluster")
