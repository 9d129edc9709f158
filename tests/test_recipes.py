"""Recipes by name, from a checkout and from an installed wheel."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from seer_pipe.errors import UserError
from seer_pipe.recipes import find_recipe, load_recipe, recipes

ROOT = Path(__file__).parents[1]
NAMES = sorted(file.stem for file in (ROOT / "configs").glob("*.yaml"))


def test_recipes_are_found_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert sorted(recipes()) == NAMES
    shipped = ROOT / "configs/quickstart.yaml"
    assert find_recipe(Path("quickstart")) == find_recipe(Path("configs/quickstart.yaml"))
    assert find_recipe(Path("quickstart")).samefile(shipped)
    own = tmp_path / "quickstart"
    own.mkdir()  # the quickstart leaves such a folder
    assert find_recipe(Path("quickstart")).samefile(shipped)
    with pytest.raises(UserError, match="a folder, where the file or the name of a recipe belongs"):
        find_recipe(tmp_path)
    own.rmdir()
    own.write_text(shipped.read_text().replace("seed: 0", "seed: 3"))
    assert find_recipe(Path("quickstart")) == Path("quickstart")  # what is there goes first
    assert load_recipe(own, ["seed=7"]).seed == 7


@pytest.mark.parametrize("name", ["quickstar", "elsewhere/quickstart.yaml", "quickstart.yml"])
def test_no_such_recipe_tells_which_there_are(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match=rf"{name}: no such file.*quickstart.*seer_10b"):
        find_recipe(Path(name))


@pytest.mark.slow
def test_a_wheel_holds_all_that_it_needs(tmp_path: Path) -> None:
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    source = tmp_path / "source"
    subprocess.run(["git", "clone", "--quiet", str(ROOT), str(source)], check=True)  # builds leave files behind
    subprocess.run([*pip, "wheel", "--no-deps", "--wheel-dir", str(tmp_path), str(source)], check=True)
    (wheel,) = tmp_path.glob("seer_pipe-*.whl")
    site = tmp_path / "site"
    subprocess.run([*pip, "install", "--no-deps", "--target", str(site), str(wheel)], check=True)

    def run(*words: str) -> str:
        env = {**os.environ, "PYTHONPATH": str(site)}
        return subprocess.check_output([sys.executable, *words], env=env, cwd=tmp_path, text=True)

    ask = "import json, seer_pipe.recipes as r; print(json.dumps({n: str(p) for n, p in r.recipes().items()}))"
    found = json.loads(run("-c", ask))
    assert sorted(found) == NAMES
    assert all(Path(path).is_relative_to(site) and Path(path).is_file() for path in found.values())
    for program, verb in (("seer-pipe", "train"), ("seer-ingest", "urls")):
        assert verb in run(str(site / "bin" / program), "--help")
