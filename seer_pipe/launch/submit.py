"""A config becomes a job, and what can be done to it from then on."""

from __future__ import annotations

import itertools
import os
import shlex
import shutil
import socket
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import submitit
import torch
from submitit.core.utils import FailedJobError
from submitit.slurm.slurm import _make_sbatch_string

import seer_pipe
from seer_pipe import config as settings
from seer_pipe import slurm
from seer_pipe.config import Config
from seer_pipe.data.sources import open_data
from seer_pipe.distributed.world import World
from seer_pipe.errors import UserError
from seer_pipe.evaluate.labels import open_labelled
from seer_pipe.launch import keeper, record
from seer_pipe.launch.cancel import active, record_of
from seer_pipe.launch.cluster import Cluster, minutes
from seer_pipe.launch.job import Job
from seer_pipe.launch.record import Record
from seer_pipe.recipes import load_recipe
from seer_pipe.section import override
from seer_pipe.train.boards import check_boards
from seer_pipe.train.build import check_world, outline
from seer_pipe.train.engines import check_engine
from seer_pipe.train.folder import agree

STARTS = 120.0  # seconds for the keeper of a local run to start


def launch(config: Config, run: Path, cluster: Cluster, on_purpose: Collection[str] = ()) -> Record:
    """Submit the run, which resumes from what is in its folder; ``on_purpose`` as in `seer_pipe.train.folder.agree`."""
    (launched,) = launch_all([(config, run)], run / "jobs", cluster, 1, on_purpose)
    return launched


def launch_all(
    runs: Sequence[tuple[Config, Path]], folder: Path, cluster: Cluster, at_once: int, on_purpose: Collection[str] = ()
) -> list[Record]:
    """Submit several runs, ``at_once`` of them at a time; on Slurm they are one array."""
    where = place(cluster)
    for config, run in runs:
        check(config, run, cluster, on_purpose)
    folder.mkdir(parents=True, exist_ok=True)
    code = snapshot(folder) if cluster.snapshot else None
    made = []
    for config, run in runs:
        (run / "jobs").mkdir(parents=True, exist_ok=True)
        (run / "jobs" / "outcome.json").unlink(missing_ok=True)
        before = record.read(run)
        made.append(Record(
            where, "", socket.gethostname(), time.time(), str(folder), config.model_dump(mode="json"),
            cluster.model_dump(mode="json"), sorted(on_purpose), [] if before is None else before.jobs,
        ))  # fmt: skip
        record.write(run, made[-1])
    paths = [run for _, run in runs]
    if where == "slurm":
        jobs = _to_slurm(paths, folder, cluster, code, at_once)
    else:
        jobs = _to_keepers(paths, folder, code, at_once)
    more: Any = [[job] if where == "slurm" else [] for job in jobs]
    return [
        record.change(run, job=job, jobs=[*(record.read(run) or item).jobs, *new])
        for item, run, job, new in zip(made, paths, jobs, more, strict=True)
    ]


def place(cluster: Cluster) -> Literal["slurm", "local"]:
    if cluster.cluster == "kubernetes":
        raise UserError("cluster kubernetes: nothing is submitted there; seer-pipe launch … --dry-run prints a Job for "
                        "kubectl apply -f -")  # fmt: skip
    if cluster.cluster == "local" or (cluster.cluster == "auto" and not slurm.available()):
        if cluster.nodes > 1:
            raise UserError("nodes: this machine is one node; more need Slurm, and none answers here")
        return "local"
    if not slurm.available():
        raise UserError("cluster slurm: no Slurm answers here (scontrol ping); is SLURM_CONF set?")
    return "slurm"


def check(config: Config, run: Path, cluster: Cluster, on_purpose: Collection[str] = ()) -> None:
    """Refuse now what would be refused once the job runs."""
    if active(run):
        launched = record.read(run)
        assert launched is not None
        raise UserError(f"{run}: is running or queued already, as job {launched.job}; seer-pipe cancel stops it")
    check_settings(config, run, cluster, on_purpose)


def check_settings(config: Config, run: Path, cluster: Cluster, on_purpose: Collection[str] = ()) -> None:
    """Refuse settings that contradict the run, the data, this installation or the cluster."""
    agree(config, run, on_purpose=on_purpose)
    check_sizes(config, cluster)
    outline(config)  # the names of trunk and stages
    check_boards(config.train.log_to)
    if config.probe is not None:
        open_labelled(config.probe.path, config.probe.labels)


def check_sizes(config: Config, cluster: Cluster) -> None:
    """Refuse data that is not there or too little, and a batch that does not suit every number of nodes allowed."""
    _, plan = open_data(config.data, config.train.batch, config.seed, config.views.media)
    for nodes in range(cluster.fewest, cluster.nodes + 1):
        check_nodes(config, cluster, nodes, plan.total, "the batch, nodes or min_nodes")


def check_nodes(config: Config, cluster: Cluster, nodes: int, images: int, change: str) -> None:
    """Refuse settings that do not suit so many nodes, with so many images; ``change``: what may mend the batch."""
    size = nodes * cluster.tasks
    if config.train.batch % size:
        raise UserError(f"train.batch {config.train.batch}: does not divide over {nodes} nodes of {cluster.tasks} "
                        f"tasks; change {change}")  # fmt: skip
    check_world(settings.derive(config, images, size), config.train, World(0, size, torch.device("cpu")))
    check_engine(config.train, size)


def batch_script(runs: Sequence[Path], folder: Path, cluster: Cluster) -> str:
    """What sbatch is given."""
    command = f"{shlex.quote(sys.executable)} -u -m submitit.core._submit {shlex.quote(str(folder))}"
    return str(_make_sbatch_string(command=command, folder=folder, **parameters(runs, folder, cluster)))


def parameters(
    runs: Sequence[Path], folder: Path, cluster: Cluster, code: Path | None = None, at_once: int = 1
) -> dict[str, Any]:
    """Of submitit's Slurm executor, for runs."""
    after = shlex.join([sys.executable, "-m", "seer_pipe.launch.after"])
    return {
        "job_name": runs[0].name if len(runs) == 1 else folder.parent.name,
        "array_parallelism": at_once,
        "teardown": ["code=$?", f"{after} $code {shlex.join(map(str, runs))}"],
        **resources(cluster, code),
    }


def resources(cluster: Cluster, code: Path | None) -> dict[str, Any]:
    """What any job of ours asks of submitit's Slurm executor."""
    nodes = f"{cluster.fewest}-{cluster.nodes}" if cluster.fewest < cluster.nodes else str(cluster.nodes)
    variables = {**cluster.variables, **({"PYTHONPATH": _python_path(code)} if code else {})}
    srun = ["--kill-on-bad-exit=1", f"--ntasks-per-node={cluster.tasks}", *cluster.srun]
    if cluster.cpus_per_task:  # Slurm's steps do not take it over from the job
        srun.append(f"--cpus-per-task={cluster.cpus_per_task}")
    if cluster.container:
        srun.append(f"--container-image={cluster.container}")
    if cluster.mounts:
        srun.append(f"--container-mounts={cluster.mounts}")
    given = {
        "partition": cluster.partition, "account": cluster.account, "qos": cluster.qos, "mem": cluster.mem,
        "constraint": cluster.constraint, "exclude": cluster.exclude, "dependency": cluster.dependency,
        "cpus_per_task": cluster.cpus_per_task, "gpus_per_node": cluster.gpus_per_node or None,
    }  # fmt: skip
    return {
        "time": minutes(cluster.time), "nodes": cluster.nodes,
        # Slurm gives a job no more nodes than it asks tasks for with the fewest: one per node is its default anyway
        **({"ntasks_per_node": cluster.tasks} if cluster.tasks > 1 else {}),
        "signal_delay_s": cluster.signal_s, "stderr_to_stdout": True,
        "setup": [*(f"export {name}={shlex.quote(value)}" for name, value in variables.items()), *cluster.setup],
        "srun_args": srun,
        "wckey": None,  # submitit's own, which a cluster that tracks them refuses
        "additional_parameters": {"nodes": nodes, "requeue": True, **cluster.sbatch},
        **{name: value for name, value in given.items() if value is not None},
    }  # fmt: skip


def _to_slurm(runs: Sequence[Path], folder: Path, cluster: Cluster, code: Path | None, at_once: int) -> list[str]:
    executor = submitit.SlurmExecutor(folder)
    executor.update_parameters(**parameters(runs, folder, cluster, code, at_once))
    try:
        return [str(job.job_id) for job in executor.submit_array([Job(run) for run in runs])]
    except FailedJobError as error:
        raise refusal(error) from None


def refusal(error: FailedJobError) -> UserError:
    """The error of an sbatch that took no job."""
    lines = [line for line in str(error).splitlines() if "sbatch: error:" in line]
    return UserError("sbatch: " + (lines or [str(error)])[-1].split("sbatch: error: ")[-1])


def _to_keepers(runs: Sequence[Path], folder: Path, code: Path | None, at_once: int) -> list[str]:
    jobs = [""] * len(runs)
    environment = dict(os.environ, PYTHONPATH=_python_path(code)) if code else None
    for first in range(min(at_once, len(runs))):
        command = [sys.executable, "-m", "seer_pipe.launch.keeper", *map(str, runs[first::at_once])]
        with (folder / "keeper.log").open("a") as log:
            process = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, env=environment, start_new_session=True
            )
        jobs[first::at_once] = [str(process.pid)] * len(jobs[first::at_once])
    deadline = time.monotonic() + STARTS
    while not all(keeper.kept(run) or record.read_outcome(run) for run in runs[:at_once]):
        if time.monotonic() > deadline:
            raise UserError(f"the job does not start: see {folder / 'keeper.log'}")
        time.sleep(0.05)
    return jobs


def snapshot(folder: Path) -> Path:
    """A copy of the package as it is now, so that an edit does not change a queued job."""
    code = folder / "code"
    shutil.rmtree(code, ignore_errors=True)
    package = Path(seer_pipe.__file__).parent
    shutil.copytree(package, code / package.name, ignore=shutil.ignore_patterns("__pycache__"))
    return code


def _python_path(code: Path) -> str:
    return os.pathsep.join(filter(None, (str(code), os.environ.get("PYTHONPATH"))))


def resume(run: Path, changes: dict[str, Any], overrides: Sequence[str] = ()) -> Record:
    """Launch again a run whose job is gone; one that waits starts as soon as it can, on other nodes if asked.

    changes    of what the job asks for, where not None
    overrides  of the run's settings on purpose: key.path=value
    """
    launched = record_of(run)
    tree = launched.config
    for text in overrides:
        override(tree, text)
    config = settings.parse(tree, str(run))
    on_purpose = {*launched.on_purpose, *(text.partition("=")[0] for text in overrides)}
    cluster = Cluster.model_validate(launched.cluster | {k: v for k, v in changes.items() if v is not None})
    if launched.where == "slurm" and (waiting := slurm.queue([launched.job]).get(launched.job)):
        if waiting.state != "PENDING":
            raise UserError(f"{run}: is running already, as job {launched.job}")
        check_settings(config, run, cluster, on_purpose)
        if changes.get("nodes"):
            slurm.set_nodes(launched.job, str(cluster.nodes))
        launched = record.change(
            run, config=config.model_dump(mode="json"), cluster=cluster.model_dump(mode="json"),
            on_purpose=sorted(on_purpose),
        )  # fmt: skip
        slurm.start_now(launched.job)
        return launched
    return launch(config, run, cluster, on_purpose)


def sweep(
    recipes: Sequence[Path], choices: Sequence[str], out: Path, change: Sequence[str] = ()
) -> list[tuple[Config, Path]]:
    """The runs of some recipes, each under every combination of ``key=value,value`` choices, and their folders.

    ``change``: overrides of them all. A folder is named by what tells its run from the others: the recipe where there
    are several, and the choices.
    """
    named = [load_recipe(recipe).name for recipe in recipes] if len(recipes) > 1 else [""]
    if twice := [name for name, count in Counter(named).items() if count > 1]:
        raise UserError(f"two of the recipes have the name {twice[0]}, and their runs would share a folder")
    return [
        (
            load_recipe(recipe, [*overrides, *change]),
            out / (",".join(filter(None, (name, *overrides))).replace("/", "_")),
        )
        for recipe, name in zip(recipes, named, strict=True)
        for overrides in combinations(choices)
    ]


def combinations(texts: Sequence[str]) -> list[tuple[str, ...]]:
    """Every combination of ``key=value,value`` arguments, each as overrides."""
    choices = []
    for text in texts:
        key, equals, values = text.partition("=")
        if not equals:
            raise UserError(f"{text!r}: write key.path=value,value")
        choices.append([f"{key}={value}" for value in _split(values)])
    return list(itertools.product(*choices))


def _split(values: str) -> list[str]:
    """The values between commas, though not between those inside a list or a mapping."""
    parts, depth = [""], 0
    for sign in values:
        depth += (sign in "[{") - (sign in "]}")
        if sign == "," and depth == 0:
            parts.append("")
        else:
            parts[-1] += sign
    return parts
