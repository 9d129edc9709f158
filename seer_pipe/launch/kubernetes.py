"""A run as a plain indexed Job of Kubernetes: one pod per node, torchrun in each, for ``kubectl apply -f -``."""

from __future__ import annotations

import re
import shlex
from pathlib import Path, PurePosixPath
from typing import Any

import yaml

from seer_pipe.config import Config
from seer_pipe.errors import UserError
from seer_pipe.launch.cluster import Cluster
from seer_pipe.launch.submit import check_nodes
from seer_pipe.train.boards import check_boards
from seer_pipe.train.build import outline

PORT = 29500  # of torchrun's meeting point, in the first pod
LARGE = 1 << 30  # images of a set that nobody looked at
RECIPE = "/etc/seer-pipe"  # where the pods find the settings
#: Settings of a job that Slurm alone has.
SLURMS = ("min_nodes", "partition", "account", "qos", "constraint", "exclude", "dependency", "sbatch", "srun")


def check(config: Config, cluster: Cluster) -> None:
    """Refuse settings that contradict each other or the nodes. The data is where the pods are, so nothing is read."""
    check_nodes(config, cluster, cluster.nodes, LARGE, "the batch or nodes")
    outline(config)
    check_boards(config.train.log_to)


def manifest(config: Config, run: Path, cluster: Cluster) -> str:
    """Service, ConfigMap and Job as YAML. UserError where a setting is missing, or none of Kubernetes.

    Pods find each other by the headless service, and the settings in the config map. A pod that fails makes all others
    fail (torchrun), and each is replaced and resumes from the newest checkpoint; evictions are not counted as failures.
    """
    if cluster.container is None:
        raise UserError("container: kubernetes needs an image with seer_pipe in it; give --container IMAGE")
    if wrong := [name for name in SLURMS if getattr(cluster, name)]:
        raise UserError(f"{', '.join(wrong)}: of Slurm alone; kubernetes has no such setting")
    name = re.sub("[^a-z0-9]+", "-", run.name.lower()).strip("-")[:50] or "run"
    volumes, mounts = _volumes(cluster.mounts or "")
    places = [PurePosixPath(mount["mountPath"]) for mount in mounts]
    if not any(PurePosixPath(run).is_relative_to(place) for place in places):
        raise UserError(
            f"{run}: in no mount, so it would be gone with its pod; give --out in one, and mounts: CLAIM:/path in "
            "the cluster's file"
        )
    labels = {"app": "seer-pipe", "run": name}
    pod = {
        "subdomain": name,
        "restartPolicy": "Never",  # the Job replaces a pod, and counts
        "terminationGracePeriodSeconds": cluster.signal_s,
        "containers": [{
            "name": "train", "image": cluster.container,
            "command": ["bash", "-c", "\n".join([*cluster.setup, _command(name, run, cluster)])],
            "env": [{"name": key, "value": value} for key, value in cluster.variables.items()],
            "resources": _resources(cluster),
            "volumeMounts": [*mounts, {"name": "recipe", "mountPath": RECIPE},
                             {"name": "shm", "mountPath": "/dev/shm"}],
        }],
        "volumes": [*volumes, {"name": "recipe", "configMap": {"name": name}},
                    {"name": "shm", "emptyDir": {"medium": "Memory"}}],  # the default's 64 MB are too little for NCCL
    }  # fmt: skip
    job = {
        "completionMode": "Indexed", "completions": cluster.nodes, "parallelism": cluster.nodes,
        "backoffLimit": cluster.max_crashes * cluster.nodes,
        "podFailurePolicy": {"rules": [
            {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
        ]},
        "template": {"metadata": {"labels": labels}, "spec": pod},
    }  # fmt: skip
    service = {"clusterIP": "None", "selector": labels, "publishNotReadyAddresses": True,
               "ports": [{"name": "torchrun", "port": PORT}]}  # fmt: skip
    recipe = yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False)
    about = {"metadata": {"name": name, "labels": labels}}
    return str(yaml.dump_all([
        {"apiVersion": "v1", "kind": "Service", **about, "spec": service},
        {"apiVersion": "v1", "kind": "ConfigMap", **about, "data": {"recipe.yaml": recipe}},
        {"apiVersion": "batch/v1", "kind": "Job", **about, "spec": job},
    ], Dumper=_Plain, sort_keys=False))  # fmt: skip


class _Plain(yaml.SafeDumper):
    """What stands twice is written twice."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


def _command(name: str, run: Path, cluster: Cluster) -> str:
    """Of one pod; the number of the node is the pod's among those of the Job."""
    words = [
        "torchrun", f"--nnodes={cluster.nodes}", f"--nproc-per-node={cluster.tasks}",
        f"--master-addr={name}-0.{name}", f"--master-port={PORT}",
    ]  # fmt: skip
    train = ["-m", "seer_pipe", "train", f"{RECIPE}/recipe.yaml", "--out", str(run)]
    return f'exec {shlex.join(words)} --node-rank="$JOB_COMPLETION_INDEX" {shlex.join(train)}'


def _resources(cluster: Cluster) -> dict[str, Any]:
    """Of a pod, which is a node of the run."""
    asked: dict[str, Any] = {}
    if cluster.cpus_per_task:
        asked["cpu"] = cluster.cpus_per_task * cluster.tasks
    if cluster.mem:
        found = re.fullmatch(r"(\d+)([KMGT]?)B?", cluster.mem.upper())
        if found is None:
            raise UserError(f"mem {cluster.mem}: write 400G")
        asked["memory"] = f"{found[1]}{found[2] or 'M'}i"  # Slurm's units are binary, and megabytes by default
    gpus = {"nvidia.com/gpu": cluster.gpus_per_node} if cluster.gpus_per_node else {}
    return {"requests": {**asked, **gpus}, "limits": gpus}


def _volumes(mounts: str) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """``CLAIM:/path,/folder/of/the/node:/path``: volumes, and where the pods have them."""
    volumes, places = [], []
    for number, mount in enumerate(filter(None, mounts.split(","))):
        source, colon, target = mount.partition(":")
        if not colon or not target.startswith("/"):
            raise UserError(f"mounts: {mount!r}: write CLAIM:/path, or /folder/of/the/node:/path")
        kind = {"hostPath": {"path": source}} if source.startswith("/") else (
            {"persistentVolumeClaim": {"claimName": source}}
        )  # fmt: skip
        volumes.append({"name": f"mount-{number}", **kind})
        places.append({"name": f"mount-{number}", "mountPath": target})
    return volumes, places
