"""The whole way, as a person would go it: every step is a command of ours, run as a process of its own."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from seer_pipe import config as settings
from seer_pipe.errors import UserError
from seer_pipe.quickstart.web import draw_web, serve, write_lists
from seer_pipe.recipes import find_recipe
from seer_pipe.shards import ShardSet

MARK = ".quickstart"  # in a folder of ours, which may be replaced


def walk(out: Path, pictures: Path | None, recipe: Path, seed: int) -> None:
    """Ingest, train, kill, resume, evaluate, export, reload; everything ends up in ``out``."""
    if pictures is not None and not pictures.is_dir():
        raise UserError(f"{pictures}: no such folder of pictures")
    recipe = find_recipe(recipe)
    make_room(out)
    started = time.monotonic()
    shards, run, export = out / "shards", out / "run", out / "backbone"
    _title(1, "Ingest")
    if pictures is None:
        labels: Path | None = out / "kinds.csv"
        _ingest_web(out, shards, out / "kinds.csv", seed)
    else:
        labels = None
        _command("seer-ingest", "folder", pictures, "--out", shards)
    overrides = [f"data.path={shards}", f"seed={seed}", *_fit(recipe, len(ShardSet.open(shards)))]
    train = ["seer-pipe", "train", recipe, *overrides, "--out", run]
    _title(2, "Train, and kill it half-way (SIGKILL)")
    _train_and_kill(train, run, settings.load(recipe, overrides))
    _title(3, "Resume: the same command again")
    _command(*train)
    _title(4, "What the features are worth")
    before, after = (_evaluate(run, shards, labels, *flag) for flag in (["--untrained"], []))
    _title(5, "Export the backbone, and load it again")
    _command("seer-pipe", "export", run, "--out", export)
    reloaded = _evaluate(export, shards, labels)
    _command("seer-pipe", "eval", "neighbours", run, "--data", shards, "--out", out / "neighbours.png")
    what = "kNN accuracy" if labels else "halves of an image that find each other"
    print(f"""
{what} over {after["images"]} images
  untrained trunk     {before["accuracy"]:.1%}
  trained trunk       {after["accuracy"]:.1%}
  reloaded export     {reloaded["accuracy"]:.1%}
{(time.monotonic() - started) / 60:.1f} minutes in all

shard set             {shards}
run                   {run}   (tensorboard --logdir {run})
backbone              {export}   (its README.md says how to load it)
look at this          {(out / "neighbours.png").resolve()}""")


def make_room(out: Path) -> None:
    if out.exists() and any(out.iterdir()):
        if not (out / MARK).exists():
            raise UserError(f"{out}: not a quickstart's folder, so it is left alone; choose another with --out")
        shutil.rmtree(out)
    out.mkdir(parents=True, exist_ok=True)
    (out / MARK).touch()


def _title(number: int, text: str) -> None:
    print(f"\n── {number}. {text}", flush=True)


def _argv(*words: object) -> list[str]:
    """A command of ours, run by this interpreter."""
    program, *arguments = map(str, words)
    print("$", program, *arguments, flush=True)
    return [str(Path(sys.executable).with_name(program)), *arguments]


def _command(*words: object) -> None:
    code = subprocess.run(_argv(*words), check=False).returncode
    if code != 0:
        raise SystemExit(code)


def _ingest_web(out: Path, shards: Path, labels: Path, seed: int) -> None:
    web = draw_web(seed)
    with serve(web) as address:
        write_lists(web, address, out / "urls.txt", labels)
        print(f"a web of {len(web.pages)} pages on {address}")
        _command("seer-ingest", "urls", out / "urls.txt", "--out", shards, "--allow-network", "127.0.0.0/8")


def _fit(recipe: Path, images: int) -> list[str]:
    """Settings for a set that is small even for the recipe: a batch is at most a quarter of it."""
    config = settings.load(recipe)
    batch = config.train.batch
    while batch > 8 and images < 4 * batch:
        batch //= 2
    if images < batch:
        raise UserError(f"{images} usable images are too few to learn from; at least {batch} are needed")
    if batch == config.train.batch:
        return []
    return [f"train.batch={batch}", *config.objective.fitted(batch)]


def _train_and_kill(train: list[Any], run: Path, config: settings.Config) -> None:
    """Begin to train, and kill the process once it has passed a checkpoint in the second third."""
    with subprocess.Popen(_argv(*train), stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            print(line, end="", flush=True)
            at = re.match(r"step (\d+)/(\d+)", line)
            if at and 3 * int(at[1]) > int(at[2]) and any(run.glob("checkpoints/*/COMMITTED.json")):
                os.kill(process.pid, signal.SIGKILL)
                print(f"killed at step {at[1]}")
                return
    if process.returncode:
        raise SystemExit(process.returncode)


def _evaluate(subject: Path, shards: Path, labels: Path | None, *flags: str) -> dict[str, Any]:
    how = ["knn", subject, "--labels", labels] if labels else ["retrieval", subject]
    argv = _argv("seer-pipe", "eval", *how, "--data", shards, *flags, "--json")
    done = subprocess.run(argv, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.returncode)
    print(done.stdout, end="", flush=True)
    result: dict[str, Any] = json.loads(done.stdout)
    return result
