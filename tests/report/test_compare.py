"""Runs side by side: numbers that are theirs, the same evaluation under one head, and what is no run refused."""

import json
import re
from pathlib import Path

import pytest
from typer.testing import CliRunner

from seer_pipe.cli import app
from seer_pipe.cli.common import run_cli
from seer_pipe.report.compare import read_sides, summary, table, write_comparison
from seer_pipe.report.evaluated import PROBE
from seer_pipe.report.recipe import differing
from seer_pipe.train.loop import train
from seer_pipe.train.telemetry import read_metrics
from tests.report.test_report import _Page
from tests.train.helpers import make_pictures, small


def result(run: Path, name: str, accuracy: float, images: int, **how: object) -> None:
    (run / "evaluation").mkdir(exist_ok=True)
    tree = {"evaluation": "knn", "accuracy": accuracy, "images": 24, "images_seen": images, **how}
    (run / "evaluation" / f"{name}.json").write_text(json.dumps(tree))


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    root = tmp_path_factory.mktemp("runs")
    pictures = make_pictures(root / "pictures", [24])
    for name, lr in (("low", 0.5), ("<high>", 2.0)):
        assert train(small(pictures, optimizer={"lr": lr}, train={"images": 24}), root / "runs" / name, lambda _: None)
    low, high = root / "runs/low", root / "runs/<high>"
    how = {"k": 20, "temperature": 0.07, "data": "val"}
    result(low, "knn-untrained-0", 0.125, 0, untrained=True, **how)
    result(low, "knn-8", 0.25, 8, **how)
    result(low, "knn-24", 0.5, 24, **how)
    result(high, "knn-24", 0.75, 24, **how)
    result(high, "knn-200", 0.875, 24, **(how | {"k": 200}))
    rows = [json.loads(line) for line in (high / "metrics.jsonl").read_text().splitlines()]
    rows = [row | {"knn": row["images"] / 100, "images_per_s": 4.0} for row in rows]
    (high / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return [low, high]


def test_each_run_is_told_by_its_own_numbers(runs: list[Path]) -> None:
    low, high = read_sides(runs)
    told = summary(high)
    assert told["images"] == told["images_planned"] == 24
    assert told["hours"] == told["process_hours"] == pytest.approx(24 / 4 / 3600)
    assert high.hours_at(12) == pytest.approx(12 / 4 / 3600)
    assert told["images_per_s"] == 4
    assert told["memory_gb"] == read_metrics(runs[1])[-1]["memory_gb"] > 0.05
    (same,) = [name for name in summary(low)["accuracy"] if name != PROBE]
    assert same == "knn (k 20, temperature 0.07, data val)"
    assert summary(low)["accuracy"] == {same: 0.5}  # the newest
    assert summary(low)["untrained"] == {same: 0.125}
    other = same.replace("k 20,", "k 200,")
    assert told["accuracy"] == {PROBE: 0.24, same: 0.75, other: 0.875}  # another k is another evaluation
    assert low.results[same] == [(0, 0.125), (8, 0.25), (24, 0.5)]
    assert differing([low.config, high.config]) == [["optimizer.lr", "0.5", "2"]]


def test_the_table_and_the_page(runs: list[Path], tmp_path: Path) -> None:
    heads, (one, other), notes = table(read_sides(runs))
    assert heads[-3:] == ["knn [1]", "kNN probe [2]", "knn [3]"]
    assert one[-3:] == ["50.0% (untrained 12.5%)", "-", "-"]
    assert other[-3:] == ["75.0%", "24.0%", "87.5%"]
    assert notes[2] == "[3] knn (k 200, temperature 0.07, data val)"
    page = write_comparison(read_sides(runs), tmp_path).read_text()
    parsed = _Page(page)
    assert (parsed.open, parsed.fetched) == ([], [])
    assert "&lt;high&gt;" in page
    assert "<high>" not in page
    lines = re.findall('<path class="(?:line|dot) s[^>]*data-name="([^"]*)"', page)
    metrics = {name for row in read_metrics(runs[0]) for name in row} - {"step", "images", "loss_above_chance"}
    assert lines.count("low") == 2 + len(metrics)  # its evaluation by images and by hours
    assert lines.count("&lt;high&gt;") == 2 * 3 + len(metrics)
    assert page.count('<p class="verdict ') == 2


def test_the_command(runs: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def seer_pipe(*words: object) -> str:
        found = CliRunner().invoke(app, ["compare", *map(str, words)], catch_exceptions=False)
        assert found.exit_code == 0
        return found.stdout

    lines = seer_pipe(*runs, "--out", tmp_path).splitlines()
    assert lines[0].split()[:2] == ["run", "objective"]
    assert [line.split()[0] for line in lines[1:3]] == ["low", "<high>"]
    assert lines[-1] == str(tmp_path / "index.html")
    told = json.loads(seer_pipe(runs[0].parent, "--json"))  # a folder of runs
    assert [row["run"] for row in told["runs"]] == sorted(map(str, runs))


def test_what_is_no_run_is_refused_in_one_line(
    runs: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.argv", ["seer-pipe", "compare", str(runs[0]), str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        run_cli(app)
    assert ended.value.code == 2
    assert capsys.readouterr().err == f"error: {tmp_path}: not a run's folder (no config.yaml), and none is in it\n"
