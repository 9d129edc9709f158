"""Verbs that may run as a job instead of here."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from seer_pipe.cli.launch import Defaults, Gpus, Nodes, Partition, Tasks, Time
from seer_pipe.errors import UserError
from seer_pipe.summary import conclude

Where = Annotated[str | None, typer.Option("--cluster", help="Run it as a job: slurm, local, or auto.")]
Slurm = Annotated[bool, typer.Option("--slurm", help="The same as --cluster slurm.")]


def _alone(
    cluster: Where = None, slurm: Slurm = False, cluster_config: Defaults = None, time: Time = None,
    partition: Partition = None,
) -> None:  # fmt: skip
    """The options of a job of one task."""


def _spread(
    cluster: Where = None, slurm: Slurm = False, cluster_config: Defaults = None, time: Time = None,
    partition: Partition = None, nodes: Nodes = None, gpus: Gpus = None, tasks: Tasks = None,
) -> None:  # fmt: skip
    """The options of a job of several tasks."""


def as_job(verb: Callable[..., None], *, spread: bool = True) -> Callable[..., None]:
    """The verb, with options to run it as a job and print here what it printed there.

    Its first parameter is the run's or export's folder, which keeps the logs; with ``spread`` it runs on several ranks.
    """
    job = inspect.signature(_spread if spread else _alone, eval_str=True).parameters

    @functools.wraps(verb)
    def run(**arguments: Any) -> None:
        asked = {name: arguments.pop(name, None) for name in job}
        where = "slurm" if asked.pop("slurm") else asked.pop("cluster")
        if where is None:
            return verb(**arguments)
        _submit(run, arguments, where, asked, spread)

    own = inspect.signature(verb, eval_str=True).parameters
    run.__signature__ = inspect.Signature([*own.values(), *job.values()])  # type: ignore[attr-defined]
    run.__annotations__ = {name: parameter.annotation for name, parameter in {**own, **job}.items()}
    return run


def _submit(
    verb: Callable[..., None], arguments: dict[str, Any], where: str, asked: dict[str, Any], spread: bool
) -> None:
    from seer_pipe.launch.call import Call, run_as_job
    from seer_pipe.launch.cluster import load

    folder = Path(next(iter(arguments.values()))).absolute()
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; give a run's folder or an exported backbone's")
    size = {"gpus_per_node": asked.pop("gpus", None), "tasks_per_node": asked.pop("tasks", None)}
    one = {} if spread else {"nodes": 1, "tasks_per_node": 1, "min_nodes": 1}
    cluster = load(asked.pop("cluster_config"), {"cluster": where, **asked, **size, **one})
    print(run_as_job(Call(verb, arguments), folder / "jobs", cluster.model_copy(update={"min_nodes": None})), end="")
    if not arguments.get("as_json"):
        conclude(f"{folder}: the job is done")
