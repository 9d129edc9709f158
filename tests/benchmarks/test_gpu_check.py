"""The frame of `make gpu-check` with parts that pass, fail, hang and are skipped; most of its own want a GPU."""

import argparse
import importlib.util
import json
import os
import subprocess
import sys
import time
from itertools import chain
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = ROOT / "benchmarks" / "gpu_check.py"


@pytest.fixture(scope="module")
def frame() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_check", PROGRAM)
    module = importlib.util.module_from_spec(spec)
    sys.modules["gpu_check"] = module
    spec.loader.exec_module(module)
    return module


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.slow
def test_each_part_has_its_turn_whatever_the_others_do(frame: ModuleType, tmp_path: Path) -> None:
    def part(name: str, code: str, limit: float = 60) -> object:
        return frame.Part(name, limit, [sys.executable, "-c", code])

    child = tmp_path / "child"
    hangs = (
        "import subprocess, sys, time\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(300)'])\n"
        f"open({str(child)!r}, 'w').write(str(child.pid))\n"
        "time.sleep(300)"
    )
    write = "import json; json.dump({}, open({!r}, 'w'))"
    parts = [
        part("rates", write.format({"images/s": 8123.456, "launches": 40}, str(tmp_path / "rates.json"))),
        part("broken", "print('begun'); raise SystemExit('the loss is not finite')"),
        part("hangs", hangs, limit=3),
        part("alone", write.format({"skipped": "it needs two GPUs"}, str(tmp_path / "alone.json"))),
        part("tests", "print('7 passed')"),
    ]
    told: list[object] = []
    results = frame.run(parts, tmp_path, told.append)
    assert told == results
    assert [result.state for result in results] == ["passed", "failed", "too slow", "skipped", "passed"]
    assert results[1].note.startswith("the loss is not finite")
    assert results[3].note == "it needs two GPUs"
    assert results[4].note == "7 passed"
    assert "begun" in (tmp_path / "broken.log").read_text()
    for _ in range(100):  # what hangs has left nothing behind, its own children included
        if not alive(int(child.read_text())):
            break
        time.sleep(0.05)
    else:
        raise AssertionError("a child of the part outlives it")
    table = frame.table(results)
    assert "| rates | passed |" in table
    assert "| images/s | 8,123 |" in table
    assert table.count("\n") == 1 + 2 + 4


def test_figures_of_an_earlier_run_are_not_shown_again(frame: ModuleType, tmp_path: Path) -> None:
    (tmp_path / "rates.json").write_text('{"images/s": 1}')
    (result,) = frame.run([frame.Part("rates", 60, [sys.executable, "-c", "pass"])], tmp_path, print)
    assert result.figures == {}


def test_all_parts_together_keep_to_eight_minutes(frame: ModuleType) -> None:
    parts = subprocess.run([sys.executable, "benchmarks/gpu_parts.py", "--help"], cwd=ROOT, text=True,
                           capture_output=True, check=True).stdout  # fmt: skip
    assert all(name in parts for name in frame.LIMITS | frame.APART)
    assert not frame.LIMITS.keys() & frame.APART.keys()
    assert sum(frame.LIMITS.values()) <= 8 * 60


def check(*options: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, str(PROGRAM), *map(str, options)]
    return subprocess.run(command, text=True, capture_output=True, timeout=250, check=False)


def test_without_a_gpu_it_says_so_in_one_line(tmp_path: Path) -> None:
    hidden = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    result = subprocess.run([sys.executable, str(PROGRAM)], text=True, capture_output=True, env=hidden, check=False)
    assert result.returncode == 2
    assert result.stderr.count("\n") == 1
    assert "no CUDA device" in result.stderr
    absent = check("--data", tmp_path / "absent")
    assert absent.returncode == 2
    assert absent.stderr.count("\n") == 1


def test_a_folder_of_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    result = check("--cpu", "--out", tmp_path)
    assert result.returncode == 2
    assert "left alone" in result.stderr
    assert (tmp_path / "thesis.txt").read_text() == "mine"


def test_one_part_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "out"
    result = check("--cpu", "--only", "data", "--out", out)
    assert result.returncode == 0, result.stdout
    assert "| data | passed |" in result.stdout
    assert '"images": 96' in (out / "results.json").read_text()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_the_parts_that_need_no_gpu(tmp_path: Path) -> None:
    """Killed and resumed, learnt, exported and reloaded, sharded over two ranks: at a tiny size."""
    command = [sys.executable, str(PROGRAM), "--cpu", "--out", str(tmp_path / "out")]
    result = subprocess.run(command, text=True, capture_output=True, timeout=880, check=False)
    assert result.returncode == 0, result.stdout
    assert result.stdout.count("| passed |") == 5
    assert "| step |" not in result.stdout


@pytest.fixture
def parts(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(PROGRAM.parent))
    import gpu_parts

    return gpu_parts


@pytest.mark.slow
def test_a_trial_that_fails_or_hangs_is_said_and_leaves_nothing(
    parts: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(parts.sys, "executable", "/bin/sh")
    monkeypatch.setattr(parts, "LEAST_SECONDS", 2)
    for name, script in (("found", "echo 1 > $3"), ("fails", "exit 3"), ("hangs", "sleep 300 & echo $! > child; wait")):
        Path(f"benchmarks/{name}").write_text(script)
    check = parts.Check(tmp_path, None, True)
    assert parts.trial(check, ["found", "a"], 60) == 1
    assert parts.trial(check, ["fails"], 60) == "failed, exit code 3", "and not what the one before had found"
    assert parts.trial(check, ["found", "a"], 1) == "no time left"
    assert parts.trial(check, ["hangs"], 3) == "stopped after 3 s"
    child = int(Path("child").read_text())
    for _ in range(600):
        if not alive(child):
            return
        time.sleep(0.05)
    raise AssertionError("a child of the trial outlives it")


def test_every_candidate_is_a_way_of_the_benchmark(parts: ModuleType) -> None:
    import train

    for way in chain([parts.FUSED], *parts.CANDIDATES, *parts.OTHER_CANDIDATES):
        assert train.known(way) == way
    with pytest.raises(argparse.ArgumentTypeError, match="foo: a way is made of eager, channels_last"):
        train.known("foo+compile")


def passed(part: str, out: Path) -> list[dict[str, Any]]:
    """The results of a part by itself, and of what it needs, on a CPU."""
    result = check("--cpu", "--only", part, "--out", out)
    assert result.returncode == 0, result.stdout
    results: list[dict[str, Any]] = json.loads((out / "results.json").read_text())["results"]
    return results


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_a_pretext_task_on_a_cpu(tmp_path: Path) -> None:
    """It has images made for it, as it needs some."""
    data, part = passed("pretext", tmp_path / "out")
    assert (data["part"], part["part"]) == ("data", "pretext")
    assert list(part["figures"]) == ["rotation, told right", *(f"rotation, kNN of stage {n}" for n in range(1, 5))]
    assert all(0 <= value <= 1 for value in part["figures"].values())


@pytest.mark.slow
@pytest.mark.timeout(400)
def test_the_candidates_for_a_faster_step_on_a_cpu(tmp_path: Path) -> None:
    out = tmp_path / "out"
    (part,) = passed("step", out)
    assert not (out / "shards").exists()
    for way in ("channels_last", "fsdp2+channels_last"):
        assert part["figures"][f"resnet18, {way}, to the plain step"] > 0
    assert part["figures"]["resnet18, bound, separate_ms"] > part["figures"]["resnet18, bound, fused_ms"]
