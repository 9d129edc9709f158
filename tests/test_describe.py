"""The settings as their fields describe them: the page, the command, and a recipe with all that it derives."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from typer.testing import CliRunner

from seer_pipe import config as settings
from seer_pipe.cli import app
from seer_pipe.describe import settings as described
from seer_pipe.errors import UserError
from seer_pipe.launch.cluster import Cluster
from seer_pipe.recipes import recipes
from tests.train.helpers import make_pictures, small


def test_every_setting_is_described() -> None:
    assert [row.key for row in described() if len(row.about.split()) < 2] == []
    known = {row.key for row in described()}
    used = {key for file in recipes().values() for key, _ in settings.flat(settings.load(file).model_dump(mode="json"))}
    used |= {key for key, _ in settings.flat(Cluster().model_dump())}
    assert used - known == set()
    assert {row.key for row in described() if row.section == "cluster"} == set(Cluster.model_fields)


@pytest.mark.parametrize(
    ("key", "kind", "default", "resume"),
    [
        ("train.batch", "integer > 0", None, "--change"),
        ("train.images", "integer > 0 or null", "null", "length"),
        ("train.log_every", "integer > 0", "10", "freely"),
        ("seed", "integer ≥ 0", "0", "no"),
        ("data.path", "text or null", "null", "freely"),
        ("data.window", "integer > 0", "32", "no"),
        ("optimizer.momentum", "number ≥ 0, < 1", "0.9", "--change"),
        ("optimizer.name", "larc, lars, sgd or adamw", "larc", "no"),
        ("views.crops[].scale", "[number > 0, ≤ 1; number > 0, ≤ 1]", None, "no"),
        ("views.augment.ratio", "[number > 0; number > 0]", "[0.75, 1.333]", "no"),
        ("train.sync_bn", "true or false, integer > 0 or a section", "true", "--change"),
        ("train.stop_before", "number > 0", "120.0", "freely"),
        ("env", "names with: text", "{}", "freely"),
    ],
)
def test_type_range_default_and_resume(key: str, kind: str, default: str | None, resume: str) -> None:
    (row,) = described(key)[:1]
    assert (row.key, row.kind, row.default, row.resume) == (key, kind, default, resume)
    assert (resume == "no") == bool(row.why)


def test_an_objective_has_its_own_defaults() -> None:
    assert {row.key: row.default for row in described("byol")}["objective.head.hidden"] == "[4096]"
    assert {row.section for row in described("objective")} >= {"objective: byol", "objective: dino"}


def test_command(capfd: pytest.CaptureFixture[str]) -> None:
    rows = json.loads(CliRunner().invoke(app, ["config", "views.augment", "--json"]).stdout)
    assert [row["key"] for row in rows] == [row.key for row in described() if row.key.startswith("views.augment.")]
    text = CliRunner().invoke(app, ["config", "train.batch"], env={"COLUMNS": "80"}).stdout
    assert text.startswith("train.batch\n    integer > 0; required; --change at a resume\n    images per step")
    with pytest.raises(UserError, match=r"trian: no section or setting of this name; there are run, data, .*cluster"):
        described("trian")


def test_show_prints_what_a_run_keeps_and_stops(tmp_path: Path) -> None:
    config = small(make_pictures(tmp_path / "pictures", [40]), train={"images": 24})
    order = settings.derive(config, 40)
    kept = settings.save(config, order, tmp_path / "recipe.yaml")
    words = ["train", str(tmp_path / "recipe.yaml"), "--show", "--out", str(tmp_path / "run")]
    shown = CliRunner().invoke(app, words)
    assert shown.exit_code == 0, shown.output
    tree, saved = yaml.safe_load(shown.stdout), yaml.safe_load(kept)
    assert tree["derived"].pop("batch_correlation") == 0
    assert saved["derived"].pop("batch_correlation") is None
    assert tree == saved
    assert not (tmp_path / "run").exists()

    absent = CliRunner().invoke(app, [*words, f"data.path={tmp_path / 'nowhere'}", "train.batch=16"]).stdout
    assert re.search(r"^# nothing is derived: .*nowhere: no shard set here", absent, re.MULTILINE)
    (tmp_path / "shown.yaml").write_text(absent)  # is a recipe again
    assert settings.load(tmp_path / "shown.yaml").train.batch == 16


def test_no_torch_is_loaded() -> None:
    code = "import sys, seer_pipe.cli, seer_pipe.describe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
