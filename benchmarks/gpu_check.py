"""Everything that only a GPU can prove, in one command and within eight minutes: `make gpu-check`.

    python benchmarks/gpu_check.py [--data IMAGES] [--only PART …] [--out build/gpu-check] [--cpu]
    python benchmarks/gpu_check.py --only step
    python benchmarks/gpu_check.py --only detection

The second tries what may make a step faster, in up to ten minutes; the third runs the tests of detection on
torchvision's own compiled operators, in up to five. Both have their turn only where they are named.

Each part (`benchmarks/gpu_parts.py`) is a process with a time limit of its own; one that fails does not keep the next
from its turn. What they found is printed as a table and written to results.json, beside each part's log. Exit code 1
where a part failed. It installs nothing and asks no network. ``--data``: Imagenette, as tars or as a folder of
class/image, or a shard set of it; without it pictures are drawn. ``--cpu``: a rehearsal of those parts that need no
GPU, at a tiny size.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
PARTS = ROOT / "benchmarks" / "gpu_parts.py"

#: Seconds that each part may take: 8 minutes in all.
LIMITS = {
    "data": 40, "tests": 55, "kernels": 40, "loader": 30, "batch": 25, "train": 85, "memory": 15, "resume": 70,
    "learn": 55, "export": 25, "engines": 40,
}  # fmt: skip
#: Those that are run only where they are named.
APART = {"step": 580, "detection": 300, "pretext": 580}
NO_IMAGES = {"step", "detection"}
ON_CPU = ("data", "resume", "learn", "export", "engines", "step", "pretext")
MARK = ".gpu-check"  # in a folder of ours, which may be replaced


@dataclass(frozen=True)
class Part:
    """``command`` writes what it measured as JSON to FOLDER/NAME.json, if it measures anything."""

    name: str
    limit: float  # seconds
    command: Sequence[str]


@dataclass(frozen=True)
class Result:
    part: str
    state: str  # passed, failed, too slow, or skipped
    seconds: float
    note: str = ""  # why it failed or was skipped, or the last line that it wrote
    figures: dict[str, Any] = field(default_factory=dict)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--only", nargs="+", choices=LIMITS | APART, metavar="PART", help=", ".join(LIMITS | APART))
    parser.add_argument("--out", type=Path, default=ROOT / "build" / "gpu-check")
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    if args.data is not None and not args.data.is_dir():
        refuse(f"{args.data}: no such folder; give --data (DATA=) the folder of Imagenette, or nothing")
    name = "CPU" if args.cpu else gpu()
    make_room(args.out, keep=args.only is not None)
    chosen = [part for part in (args.only or LIMITS) if part in ON_CPU or not args.cpu]
    if "data" not in chosen and not set(chosen) <= NO_IMAGES and not (args.out / "shards").exists():
        chosen.insert(0, "data")
    options = [*(["--data", str(args.data.resolve())] if args.data else []), *(["--cpu"] if args.cpu else [])]
    parts = [
        Part(
            part,
            300 if args.cpu else (LIMITS | APART)[part],
            [sys.executable, str(PARTS), part, str(args.out.resolve()), *options],
        )
        for part in chosen
    ]
    print(f"{name}: {len(parts)} parts, at most {sum(part.limit for part in parts) / 60:.0f} minutes", flush=True)
    results = run(parts, args.out, lambda result: print(line(result), flush=True))
    told = {"device": name, "results": [asdict(result) for result in results]}
    (args.out / "results.json").write_text(json.dumps(told, indent=1))
    print(f"\n{table(results)}\n\n{args.out / 'results.json'}")
    sys.exit(any(result.state in ("failed", "too slow") for result in results))


def refuse(why: str) -> None:
    print(f"error: {why}", file=sys.stderr)
    sys.exit(2)


def gpu() -> str:
    try:
        import torch
    except ModuleNotFoundError:
        refuse(f"{sys.executable} has no torch: make gpu-check PYTHON=… with an environment that has torch and DALI")
    if not torch.cuda.is_available():
        refuse(f"torch {torch.__version__} sees no CUDA device here: there is nothing that this could check")
    return f"{torch.cuda.device_count()} x {torch.cuda.get_device_name()}"


def make_room(folder: Path, *, keep: bool) -> None:
    if folder.exists() and any(folder.iterdir()) and not keep:
        if not (folder / MARK).exists():
            refuse(f"{folder}: not a folder of this check, so it is left alone; choose another with --out")
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / MARK).touch()


def run(parts: Sequence[Part], folder: Path, tell: Callable[[Result], None]) -> list[Result]:
    """Each part in turn, whatever the others do; all that it started ends with it."""
    results = []
    for part in parts:
        results.append(run_one(part, folder))
        tell(results[-1])
    return results


def run_one(part: Part, folder: Path) -> Result:
    found, log = folder / f"{part.name}.json", folder / f"{part.name}.log"
    found.unlink(missing_ok=True)
    started = time.monotonic()
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))}
    with log.open("wb") as file, subprocess.Popen(
        part.command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True, env=environment
    ) as process:  # fmt: skip
        try:
            code: int | None = process.wait(part.limit)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            kill(process)
    seconds = time.monotonic() - started
    figures = json.loads(found.read_text()) if code == 0 and found.exists() else {}
    if code is None:
        return Result(part.name, "too slow", seconds, f"stopped after {part.limit:g} s; see {log}")
    last = ([text for text in log.read_text(errors="replace").splitlines() if text.strip()] or [""])[-1].strip()
    if code:
        return Result(part.name, "failed", seconds, f"{last or f'exit code {code}'} (see {log})")
    if "skipped" in figures:
        return Result(part.name, "skipped", seconds, figures["skipped"])
    return Result(part.name, "passed", seconds, "" if figures else last, figures)


def kill(process: subprocess.Popen[bytes]) -> None:
    """The part and all that it started and left: they are a session of their own."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def line(result: Result) -> str:
    return f"{result.part:8} {result.state:9} {result.seconds:5.0f} s  {result.note}".rstrip()


def table(results: Sequence[Result]) -> str:
    """For people, and for docs/results.md: a row for each figure."""
    rows = ["| part | | s | figure | |", "|---|---|---:|---|---:|"]
    for result in results:
        start = f"| {result.part} | {result.state} | {result.seconds:.0f} |"
        figures = [f" {name} | {value:,.4g} |" if isinstance(value, float) else f" {name} | {value} |"
                   for name, value in result.figures.items()] or [f" {result.note} | |"]  # fmt: skip
        rows += [(start if number == 0 else "| | | |") + figure for number, figure in enumerate(figures)]
    return "\n".join(rows)


if __name__ == "__main__":
    main()
