"""Runs as jobs, on Slurm or on this machine."""

from __future__ import annotations

import json
from contextlib import nullcontext, suppress
from datetime import datetime
from pathlib import Path
from time import sleep
from typing import TYPE_CHECKING, Annotated, Any

import typer

from seer_pipe.cli.common import AsJson, Change, ConfigArgument, Overrides, changed_keys, columns
from seer_pipe.units import duration

if TYPE_CHECKING:
    from rich.text import Text

LOOK = 2.0  # seconds between two looks at the runs
verbs = typer.Typer()
RunArgument = Annotated[Path, typer.Argument(help="The run's folder.")]
Where = Annotated[str | None, typer.Option("--cluster", help="slurm, local, kubernetes (with --dry-run), or auto.")]
Defaults = Annotated[
    str | None,
    typer.Option("--cluster-config", envvar="SEER_PIPE_CLUSTER", help="YAML file, or its name in slurm/clusters."),
]
Nodes = Annotated[int | None, typer.Option(help="Nodes.")]
MinNodes = Annotated[int | None, typer.Option(help="Continue with as few nodes when others fail; default: all.")]
Gpus = Annotated[int | None, typer.Option("--gpus-per-node", help="GPUs per node, one task each.")]
Tasks = Annotated[int | None, typer.Option("--tasks-per-node", help="Tasks per node; default: one per GPU, or one.")]
Cpus = Annotated[int | None, typer.Option("--cpus-per-task", help="CPU cores per task.")]
Memory = Annotated[str | None, typer.Option("--mem", help="Memory per node: 400G.")]
Time = Annotated[str | None, typer.Option(help="Of one start: 3d, 12h, 90m; a longer run continues by requeues.")]
Partition = Annotated[str | None, typer.Option(help="Slurm partition.")]
Account = Annotated[str | None, typer.Option(help="Slurm account.")]
Constraint = Annotated[str | None, typer.Option(help="Features that nodes must have.")]
Exclude = Annotated[str | None, typer.Option(help="Nodes not to use.")]
Dependency = Annotated[str | None, typer.Option(help="As Slurm has it: afterok:123.")]
Container = Annotated[str | None, typer.Option(help="Image for the tasks (pyxis, kubernetes).")]


@verbs.command()
def launch(
    config: ConfigArgument, overrides: Overrides = None, change: Change = None,
    out: Annotated[Path | None, typer.Option(help="The run's folder; by default runs/NAME.")] = None,
    cluster: Where = None, cluster_config: Defaults = None, nodes: Nodes = None, min_nodes: MinNodes = None,
    gpus: Gpus = None, tasks: Tasks = None, cpus: Cpus = None, mem: Memory = None, time: Time = None,
    partition: Partition = None, account: Account = None, constraint: Constraint = None, exclude: Exclude = None,
    dependency: Dependency = None, container: Container = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the batch script and submit nothing.")] = False,
    as_json: AsJson = False,
) -> None:  # fmt: skip
    """Train a recipe as a job that continues, through time limits, preemption and crashes, until it is done."""
    from seer_pipe.launch import submit
    from seer_pipe.recipes import load_recipe

    recipe = load_recipe(config, [*(overrides or []), *(change or [])])
    run = (out or Path("runs") / recipe.name).absolute()
    asked = _cluster(cluster_config, cluster=cluster, nodes=nodes, min_nodes=min_nodes, gpus_per_node=gpus,
                     tasks_per_node=tasks, cpus_per_task=cpus, mem=mem, time=time, partition=partition, account=account,
                     constraint=constraint, exclude=exclude, dependency=dependency, container=container)  # fmt: skip
    if dry_run and asked.cluster == "kubernetes":
        from seer_pipe.launch import kubernetes

        kubernetes.check(recipe, asked)
        print(kubernetes.manifest(recipe, run, asked), end="")
        return
    if dry_run:
        submit.check(recipe, run, asked, changed_keys(change))
        print(submit.batch_script([run], run / "jobs", asked), end="")
        return
    _report([(run, submit.launch(recipe, run, asked, changed_keys(change)))], as_json)


@verbs.command()
def sweep(
    config: ConfigArgument,
    words: Annotated[
        list[str], typer.Argument(help="More recipes, and settings to go through: key.path=value,value")
    ],
    out: Annotated[Path, typer.Option(help="Folder for the runs.")],
    change: Change = None, at_once: Annotated[int, typer.Option(min=1, help="Runs at a time.")] = 1,
    cluster: Where = None, cluster_config: Defaults = None, nodes: Nodes = None, min_nodes: MinNodes = None,
    gpus: Gpus = None, tasks: Tasks = None, cpus: Cpus = None, mem: Memory = None, time: Time = None,
    partition: Partition = None, account: Account = None, constraint: Constraint = None, exclude: Exclude = None,
    dependency: Dependency = None, container: Container = None, as_json: AsJson = False,
) -> None:  # fmt: skip
    """One array of runs: recipes, each under every combination of a few settings."""
    from seer_pipe.launch import submit

    asked = _cluster(cluster_config, cluster=cluster, nodes=nodes, min_nodes=min_nodes, gpus_per_node=gpus,
                     tasks_per_node=tasks, cpus_per_task=cpus, mem=mem, time=time, partition=partition, account=account,
                     constraint=constraint, exclude=exclude, dependency=dependency, container=container)  # fmt: skip
    recipes = [config, *(Path(word) for word in words if "=" not in word)]
    runs = submit.sweep(recipes, [word for word in words if "=" in word], out.absolute(), change or ())
    launched = submit.launch_all(runs, out.absolute() / "jobs", asked, at_once, changed_keys(change))
    _report([(run, item) for (_, run), item in zip(runs, launched, strict=True)], as_json)


@verbs.command()
def resume(
    run: RunArgument, change: Change = None, nodes: Nodes = None, time: Time = None, as_json: AsJson = False
) -> None:
    """Resume a run that was stopped, cancelled, or has failed; let one that waits start as soon as it can."""
    from seer_pipe.launch import submit

    run = run.absolute()
    fewer = {"min_nodes": None} if nodes else {}
    _report([(run, submit.resume(run, {"nodes": nodes, "time": time, **fewer}, change or []))], as_json)


@verbs.command()
def cancel(run: RunArgument, as_json: AsJson = False) -> None:
    """Stop a run for good; it commits a checkpoint first if it is training."""
    from seer_pipe.launch.cancel import cancel as stop

    done = stop(run.absolute())
    print(json.dumps({"run": str(run), "done": done}) if as_json else f"{run}: {done}")


@verbs.command()
def logs(
    run: RunArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Follow until the run is over.")] = False,
    rank: Annotated[int, typer.Option(min=0, help="Whose.")] = 0,
) -> None:
    """What a run printed, over all its starts."""
    from seer_pipe.launch.status import logs as read_logs

    for text in read_logs(run.absolute(), rank, follow):
        print(text, end="", flush=True)


@verbs.command()
def status(
    root: Annotated[Path, typer.Argument(help="A run's folder, or one with runs in it.")] = Path("runs"),
    watch: Annotated[
        bool, typer.Option("--watch", "-w", help="A live table, until all runs are over or Ctrl-C.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """How a run is doing, or all runs in a folder."""
    from rich.console import Console
    from rich.live import Live

    from seer_pipe.launch.status import OVER, find_runs
    from seer_pipe.launch.status import status as ask

    console = Console(highlight=False)
    shown = Live(console=console, auto_refresh=False) if watch and not as_json else nullcontext()
    with suppress(KeyboardInterrupt), shown as live:
        while True:
            rows = ask(find_runs(root.absolute()))
            if as_json:
                print(json.dumps(rows), flush=True)
            elif live is not None:
                live.update(_table(rows), refresh=True)
            else:
                console.print(_table(rows), soft_wrap=True)
            if not watch or all(row["state"] in OVER for row in rows):
                return
            sleep(LOOK)


def _table(rows: list[dict[str, Any]]) -> Text:
    """One line per run, and under it more of it; names are whole, however narrow the terminal is."""
    from rich.text import Text

    if not rows:
        return Text("no runs here")
    heads = ("run", "state", "step", "images/s", "loss", "left")
    colours = {"running": "green", "done": "bold green", "failed": "bold red", "died": "bold red", "queued": "yellow"}
    texts = [(
        Path(row["run"]).name,
        row["state"] + (f" (silent for {duration(row['silent_s'])})" if (row["silent_s"] or 0) > 60 else ""),
        f"{_some(row['step'])}/{_some(row['steps'])}",
        _some(row["images_per_s"], ".1f"), _some(row["loss"], ".4f"),
        "" if row["eta_s"] is None else duration(row["eta_s"]),
    ) for row in rows]  # fmt: skip
    lines = []
    for row, line in zip([None, *rows], columns(heads, texts), strict=True):
        lines.append(Text(line, style="bold" if row is None else colours.get(row["state"], "")))
        if row is not None:
            known = {"checkpoint": row["checkpoint"], "job": row["job"], "restarts": row["restarts"] or None}
            facts = [f"{name} {value}" for name, value in known.items() if value is not None]
            if row["since"] is not None:
                facts.append(f"{row['state']} since {datetime.fromtimestamp(row['since']):%Y-%m-%d %H:%M}")
            lines.append(Text("  " + "; ".join([*facts, *filter(None, [row["why"]])])))
    return Text("\n").join(lines)


def _some(value: Any, form: str = "") -> str:
    return "-" if value is None else format(value, form)


def _cluster(name: str | None, **changes: Any) -> Any:
    from seer_pipe.launch.cluster import load

    return load(name, changes)


def _report(launched: list[tuple[Path, Any]], as_json: bool) -> None:
    for run, item in launched:
        if as_json:
            print(json.dumps({"run": str(run), "where": item.where, "job": item.job}))
        else:
            print(f"{run}: job {item.job} on {'Slurm' if item.where == 'slurm' else 'this machine'}; "
                  "seer-pipe status, logs --follow and cancel take its folder")  # fmt: skip
