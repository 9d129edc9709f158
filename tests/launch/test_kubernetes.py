"""A run as a Job of Kubernetes: held against its own schemas, and against what the settings ask for."""

from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from typer.testing import CliRunner

from seer_pipe import config as settings
from seer_pipe.cli import app
from seer_pipe.errors import UserError
from seer_pipe.launch.cluster import Cluster
from seer_pipe.launch.kubernetes import check, manifest
from seer_pipe.launch.submit import place
from tests.train.helpers import small

RUN = Path("/runs/My run.1")


def cluster(**changes: Any) -> Cluster:
    asked = {"cluster": "kubernetes", "nodes": 2, "gpus_per_node": 4, "cpus_per_task": 12, "mem": "400G",
             "container": "registry/seer-pipe:1", "mounts": "runs:/runs,/scratch:/scratch", "interface": "eth0",
             "env": {"A": "1"}, "setup": ["ulimit -n 4096"], "max_crashes": 2}  # fmt: skip
    return Cluster(**{**asked, **changes})


def parts(text: str) -> dict[str, dict[str, Any]]:
    """Its objects by kind, each valid by the schemas of Kubernetes, strictly: with no field that is unknown."""
    found = list(yaml.safe_load_all(text))
    for part in found:
        kubernetes_validate.validate(part, kubernetes_validate.latest_version(), strict=True)
    return {part["kind"]: part for part in found}


def test_the_job_is_valid_and_has_what_was_asked_for() -> None:
    config = small("s3://bucket/set")
    found = parts(manifest(config, RUN, cluster()))
    job = found["Job"]["spec"]
    assert (job["completionMode"], job["completions"], job["parallelism"], job["backoffLimit"]) == ("Indexed", 2, 2, 4)
    (container,) = job["template"]["spec"]["containers"]
    assert container["image"] == "registry/seer-pipe:1"
    assert container["resources"] == {"requests": {"cpu": 48, "memory": "400Gi", "nvidia.com/gpu": 4},
                                      "limits": {"nvidia.com/gpu": 4}}  # fmt: skip
    assert {entry["name"]: entry["value"] for entry in container["env"]} == {
        "A": "1", "NCCL_SOCKET_IFNAME": "eth0", "GLOO_SOCKET_IFNAME": "eth0"
    }  # fmt: skip
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in job["template"]["spec"]["volumes"]}
    assert volumes[mounts["/runs"]]["persistentVolumeClaim"] == {"claimName": "runs"}
    assert volumes[mounts["/scratch"]]["hostPath"] == {"path": "/scratch"}
    assert yaml.safe_load(found["ConfigMap"]["data"]["recipe.yaml"]) == config.model_dump(mode="json")
    name = found["Job"]["metadata"]["name"]
    assert name == found["Service"]["metadata"]["name"] == job["template"]["spec"]["subdomain"] == "my-run-1"
    assert found["Service"]["spec"]["selector"].items() <= job["template"]["metadata"]["labels"].items()
    assert container["command"][2] == (
        "ulimit -n 4096\nexec torchrun --nnodes=2 --nproc-per-node=4 --master-addr=my-run-1-0.my-run-1 "
        "--master-port=29500 --node-rank=\"$JOB_COMPLETION_INDEX\" -m seer_pipe train /etc/seer-pipe/recipe.yaml --out "
        "'/runs/My run.1'"
    )  # fmt: skip


def test_the_settings_in_it_are_a_recipe(tmp_path: Path) -> None:
    config = small("s3://bucket/set")
    text = parts(manifest(config, RUN, cluster()))["ConfigMap"]["data"]["recipe.yaml"]
    (tmp_path / "recipe.yaml").write_text(text)
    assert settings.load(tmp_path / "recipe.yaml") == config


def test_on_a_cpu_and_one_node() -> None:
    found = parts(manifest(small("s3://a/b"), RUN, cluster(nodes=1, gpus_per_node=0, cpus_per_task=None, mem=None)))
    assert found["Job"]["spec"]["template"]["spec"]["containers"][0]["resources"] == {"requests": {}, "limits": {}}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"container": None}, "give --container IMAGE"),
        ({"partition": "gpu", "qos": "high"}, "partition, qos: of Slurm alone"),
        ({"mounts": "runs"}, "write CLAIM:/path"),
        ({"mounts": "data:/data"}, "in no mount, so it would be gone with its pod"),
        ({"mem": "much"}, "write 400G"),
    ],
)
def test_what_cannot_be_is_said(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        manifest(small("s3://a/b"), RUN, cluster(**changes))


def test_a_batch_that_does_not_divide_is_refused() -> None:
    config = small("s3://a/b", train={"batch": 16})
    check(config, cluster())
    with pytest.raises(UserError, match="does not divide over 3 nodes of 4 tasks"):
        check(config, cluster(nodes=3))
    with pytest.raises(UserError, match="kubectl apply -f -"):
        place(cluster())


def test_the_command_prints_it(tmp_path: Path) -> None:
    (tmp_path / "cluster.yaml").write_text("mounts: runs:/runs\ncontainer: image:1\n")
    words = ["launch", "quickstart", "data.path=s3://bucket/set", "--out", "/runs/q", "--cluster", "kubernetes",
             "--cluster-config", str(tmp_path / "cluster.yaml"), "--dry-run"]  # fmt: skip
    printed = CliRunner().invoke(app, words, catch_exceptions=False).stdout
    assert set(parts(printed)) == {"Service", "ConfigMap", "Job"}
    assert "&id" not in printed
