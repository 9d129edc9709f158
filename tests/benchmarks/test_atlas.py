"""The atlas of a hundred thousand drawn pictures in four thousand clusters, as the benchmark makes and opens it."""

import importlib.util
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from seer_pipe.report.atlas import write_atlas
from tests.browser import show, wait
from tests.report.test_atlas import script

PROGRAM = Path(__file__).resolve().parents[2] / "benchmarks" / "atlas.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("atlas_benchmark", PROGRAM)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.slow
def test_a_hundred_thousand_pictures(benchmark: ModuleType, browser: Any, tmp_path: Path) -> None:
    images, clusters = 100_000, 4000
    benchmark.make_set(tmp_path / "set", images)
    benchmark.make_embeddings(tmp_path / "e.parquet", images, clusters, 32)
    page = write_atlas(tmp_path, tmp_path / "atlas", str(tmp_path / "set"), embeddings=tmp_path / "e.parquet")
    about = script(page, "data.js")
    assert (about["images"], about["start"][-1]) == (images, images)  # all of them are on the map
    assert sum((page.parent / name).stat().st_size for name in ("index.html", "data.js", "points.js")) < 4e6
    show(browser, page.as_uri(), 1280, 900, "light")
    for factor in (1, 4, 16):
        browser.execute_script(f"zoom({factor})")
        wait(lambda: browser.execute_script("return tiles.size && [...tiles.values()].every(one => one.canvas)"), 120)
        assert browser.execute_script("return current().z") > 0
    shown = browser.execute_script("by('in-view').click(); return by('said').textContent")
    assert int(shown.split()[0].replace(",", "")) > 10
    assert browser.execute_script("return tiles.size") <= 240
    assert browser.get_log("browser") == []
