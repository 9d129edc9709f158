"""Verbs as jobs on this machine: what they print comes back, on as many ranks as were asked for."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from seer_pipe.cli import app
from seer_pipe.errors import UserError
from seer_pipe.evaluate.results import kept
from seer_pipe.export import Preprocessing, export_backbone
from seer_pipe.models import build_trunk
from tests.command import seer_pipe
from tests.train.helpers import make_pictures


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("export") / "out"
    torch.manual_seed(0)
    export_backbone(build_trunk("regnety_200mf"), out, images=torch.randn(2, 3, 32, 32), metadata={},
                    preprocessing=Preprocessing(size=32))  # fmt: skip
    return out


@pytest.mark.slow
def test_an_evaluation_on_two_ranks_and_what_is_wrong_with_one(backbone: Path, tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "pictures", [10, 6])
    asked = ["eval", "knn", backbone, "--data", pictures, "--cluster", "local", "--tasks-per-node", 2, "--json"]
    done = seer_pipe(*asked, "--labels", "folder")
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert (result["images"], result["classes"]) == (16, 8)
    assert kept(backbone) == {"knn-0": result}
    assert len(list((backbone / "jobs").glob("*_1_log.out"))) == 1
    wrong = seer_pipe(*asked, "--labels", "shape")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    last = wrong.stderr.splitlines()[-1]
    assert last.startswith("error: job ")
    assert "'shape': no column of" in last


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["eval", "retrieval", "nowhere", "--data", "x", "--cluster", "local"], "nowhere: no such folder"),
        (["export", ".", "--out", "x", "--cluster", "moon"], "cluster: input should be 'auto'"),
        (["eval", "retrieval", ".", "--data", "x", "--cluster", "local", "--nodes", "2"], "one node"),
    ],
)
def test_what_cannot_be_a_job_is_said_at_once(arguments: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message):
        CliRunner().invoke(app, arguments, catch_exceptions=False)
