"""The parts of `make gpu-check`, each a process: python benchmarks/gpu_parts.py PART FOLDER [--data IMAGES] [--cpu].

A part raises where something is wrong, and writes what it measured to FOLDER/PART.json.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

DRAWN = 640  # pictures, where none are given
CROPS, BATCH = "2x224+6x96", 64  # of the steps that are measured
TRUNKS = ("resnet50", "regnety_16gf")
TINY = (
    "views.crops=[{count: 2, size: 32, scale: [0.4, 1.0]}]",
    "objective.prototypes=8",
    "train.threads=1",
)  # without a GPU
#: Ways of a step (benchmarks/train.py), those of a process together, by promise. The first are what users have.
CANDIDATES = (
    ("channels_last", "fsdp2+channels_last"), ("channels_last+cudnn_benchmark",), ("channels_last+compile_trunk",),
    ("channels_last+compile",), ("channels_last+cuda_graphs",), ("channels_last+max_autotune",),
    ("channels_last+cudnn_benchmark+compile_trunk",), ("cudnn_benchmark",),
)  # fmt: skip
PRETEXT, EPOCHS = ("rotation", "relative_patch", "jigsaw"), 15  # on DATA
FUSED = "channels_last+fused_bn"  # RegNets alone have the pairs that it joins
OTHER_TRUNKS = ("resnext101_32x8d", "regnety_32gf")
OTHER_CANDIDATES = (("eager", "channels_last"), ("channels_last+cudnn_benchmark",))
SECONDS_OF_STEP, SECONDS_OF_TRIAL, LEAST_SECONDS = 560, 120, 15
INGEST = ("-c", "from ingest.cli import main; main()")
AGREE = 0.02  # share by which losses may differ that are computed in another order

Figures = dict[str, Any]


@dataclass(frozen=True)
class Check:
    folder: Path
    data: Path | None
    cpu: bool

    @property
    def shards(self) -> Path:
        return self.folder / "shards"

    @property
    def tar(self) -> Path:
        return sorted(self.shards.glob("*.tar"))[0]


def python(*words: object) -> str:
    """Run this interpreter, show what it writes, and return its standard output."""
    done = subprocess.run([sys.executable, *map(str, words)], stdout=subprocess.PIPE, text=True, check=False)
    print(done.stdout, end="", flush=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(map(str, words[:4]))} …: exit code {done.returncode}")
    return done.stdout


def fresh(folder: Path) -> Path:
    """Without what an earlier call of this part left there."""
    shutil.rmtree(folder, ignore_errors=True)
    return folder


def data(check: Check) -> Figures:
    """A shard set of the images given, or of drawn ones; an image's folder is its class."""
    given = check.data
    if check.shards.is_symlink():
        check.shards.unlink()
    fresh(check.shards)
    if given is not None and (given / "manifest.parquet").exists():
        check.shards.symlink_to(given)
    elif given is not None and list(given.glob("*.tar")):
        python(*INGEST, "archive", *sorted(given.glob("*.tar")), "--out", check.shards)
    else:
        python(*INGEST, "folder", given or draw(check), "--out", check.shards)
    from seer_pipe.shards import ShardSet

    return {"images": len(ShardSet.open(check.shards))}


def draw(check: Check) -> Path:
    from seer_pipe.quickstart.draw import KINDS, picture

    kinds = sorted(KINDS)
    for number in range(96 if check.cpu else DRAWN):
        kind = kinds[number % len(kinds)]
        folder = check.folder / "pictures" / kind
        folder.mkdir(parents=True, exist_ok=True)
        picture(kind, number).resize((500, 375)).save(folder / f"{number:06d}.jpg", quality=90)
    return check.folder / "pictures"


def tests(check: Check) -> Figures:
    python("-m", "pytest", "-m", "gpu", "tests/data", "tests/objectives", "tests/train")
    return {}


def kernels(check: Check) -> Figures:
    """What the interpreter proves elsewhere, compiled."""
    python("-m", "pytest", "tests/data/test_pixels_gpu.py")
    return {}


def loader(check: Check) -> Figures:
    found = check.folder / "views.json"
    python("benchmarks/views.py", check.tar, "--device", "cuda", "--threads", min(12, os.cpu_count() or 1),
           "--batch", 256, "--rounds", 3, "--only", "ours", "peer", "decoder", "--json", found)  # fmt: skip
    rates = json.loads(found.read_text())
    return {f"{name}, images/s": rate for name, rate in rates.items()} | {"to the peer": rates["ours"] / rates["peer"]}


def batch(check: Check) -> Figures:
    """Where the time of a batch of 256 goes: by the clock, of this thread, of the GPU; and its launches."""
    import torch
    import views  # beside this file
    from torch.profiler import ProfilerActivity, profile

    from seer_pipe.data.dali import Augmenter

    augmenter = Augmenter(views.CROPS, device="cuda", threads=min(12, os.cpu_count() or 1), max_batch=256,
                          dtype=torch.float16, layout=torch.channels_last)  # fmt: skip
    jpegs = (views.sound_jpegs(check.tar, augmenter) * 256)[:256]
    drawn = views.views(jpegs)
    for _ in range(3):
        augmenter(jpegs, drawn)
    torch.cuda.synchronize()
    clock, thread, rounds = time.perf_counter(), time.thread_time(), 10
    for _ in range(rounds):
        augmenter(jpegs, drawn)
    torch.cuda.synchronize()
    clock, thread = time.perf_counter() - clock, time.thread_time() - thread
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        augmenter(jpegs, drawn)
        torch.cuda.synchronize()
    on_gpu = [event for event in seen.key_averages() if event.self_device_time_total > 0]
    ours = [event for event in on_gpu if event.key in ("_cut", "_mean", "_colour", "_blur", "_finish")]
    if not ours:
        raise SystemExit(f"none of this project's kernels among {[event.key for event in on_gpu]}")
    launches = sum(event.count for event in ours)
    if launches > 100:
        raise SystemExit(f"{launches} launches for a batch, more than 100")
    return {
        "ms by the clock": 1e3 * clock / rounds,
        "ms of the loader's thread": 1e3 * thread / rounds,
        "launches after decoding": launches,
        "launches and copies in all": sum(event.count for event in on_gpu),
        "GPU us an image after decoding": sum(event.self_device_time_total for event in ours) / 256,
        "GPU us an image in all": sum(event.self_device_time_total for event in on_gpu) / 256,
    }


def train(check: Check) -> Figures:
    found = check.folder / "steps.json"
    python("benchmarks/train.py", *TRUNKS, "--ways", "channels_last", "--crops", CROPS, "--batch", BATCH, "--rounds",
           3, "--steps", 6, "--data", check.shards, "--json", found)  # fmt: skip
    return {
        f"{trunk}, {way}, images/s": figures["images_per_s"]
        for trunk, ways in json.loads(found.read_text()).items() for way, figures in ways.items()
    }  # fmt: skip


def memory(check: Check) -> Figures:
    """The peaks that `train` measured beside the doctor's estimates."""
    from train import recipe as settings_of  # beside this file

    from seer_pipe.train.doctor import estimate_memory

    found = check.folder / "steps.json"
    if not found.exists():
        raise SystemExit("no peaks: the part 'train' comes first")
    args, figures = argparse.Namespace(crops=CROPS, batch=BATCH, threads=1), Figures()
    for trunk, ways in json.loads(found.read_text()).items():
        estimate = estimate_memory(settings_of(trunk, args, str(check.shards), "channels_last"), 1)["total"]
        peak = ways["ours, channels_last"]["gb"]
        figures |= {f"{trunk}, peak GB": peak, f"{trunk}, estimated GB": estimate, f"{trunk}, ratio": peak / estimate}
    return figures


def seer_pipe(*words: object) -> list[str]:
    return [sys.executable, "-m", "seer_pipe", *map(str, words)]


def recipe(check: Check, name: str, *settings: str) -> list[str]:
    device = "cpu" if check.cpu else "cuda"
    return [
        *seer_pipe("train", f"configs/{name}.yaml", f"data.path={check.shards}", f"train.device={device}"),
        *settings,
    ]


def metrics(run: Path) -> list[dict[str, float]]:
    from seer_pipe.train.telemetry import read_metrics

    return read_metrics(run)


def losses(run: Path) -> dict[float, float]:
    return {row["step"]: row["loss"] for row in metrics(run)}


def apart(found: dict[float, float], meant: dict[float, float]) -> float:
    """The largest relative difference of two runs' losses, which must have the same steps."""
    if found.keys() != meant.keys():
        raise SystemExit(f"steps {sorted(found.keys() ^ meant.keys())} are in one run and not in the other")
    worst = max(abs(found[step] / meant[step] - 1) for step in meant)
    if not worst < AGREE:
        raise SystemExit(f"the losses differ by {worst:.1%}")
    return worst


def resume(check: Check) -> Figures:
    """A run that is killed and resumed, beside one that is not."""
    batch, steps, figures = (8, 8, Figures()) if check.cpu else (32, 120, Figures())
    queue = [f"objective.queue={2 * batch}", f"objective.queue_start_images={2 * batch}"]
    larc, adamw = ["optimizer.name=larc", "optimizer.lr=0.3", *queue], ["optimizer.name=adamw"]
    ways = {"bf16, larc, queue": ["train.precision=bf16", *larc], "fp16, adamw": ["train.precision=fp16", *adamw]}
    if check.cpu:
        ways = {"fp32, larc, queue": ["train.precision=fp32", *larc]}
    for name, settings in ways.items():
        command = recipe(
            check, "quickstart", *settings, *(TINY if check.cpu else ()), "train.epochs=null", f"train.batch={batch}",
            f"train.images={batch * steps}", "train.log_every=1", f"train.checkpoint_every={steps // 4}",
            "train.log_to=[]", "objective.freeze_images=0",
        )  # fmt: skip
        folder = fresh(check.folder / name.replace(", ", "-"))
        whole = subprocess.Popen([*command, "--out", str(folder / "whole")])
        kill_after_checkpoint([*command, "--out", str(folder / "killed")], folder / "killed")
        again = python(*command[1:], "--out", folder / "killed")
        if whole.wait() or "resumed: " not in again:
            raise SystemExit(f"{name}: {'it started over' if not whole.returncode else 'the run alone failed'}")
        figures[f"{name}: largest difference of a loss"] = apart(losses(folder / "killed"), losses(folder / "whole"))
    return figures


def kill_after_checkpoint(command: Sequence[str], run: Path) -> None:
    with subprocess.Popen(command) as process:
        while process.poll() is None:
            done = [int(path.parent.name.split("-")[1]) for path in run.glob("checkpoints/step-*/COMMITTED.json")]
            if any(done):
                os.kill(process.pid, signal.SIGKILL)
                return
            time.sleep(0.02)
    raise SystemExit("the run ended before it could be killed")


def evaluated(subject: Path, check: Check, *options: str) -> Figures:
    """By kNN."""
    found: Figures = json.loads(python(*seer_pipe("eval", "knn", subject, "--data", check.shards, "--labels", "folder",
                                                  "--json", *options)[1:]))  # fmt: skip
    return found


def knn(subject: Path, check: Check, *options: str) -> float:
    return float(evaluated(subject, check, *options)["accuracy"])


def learn(check: Check) -> Figures:
    """A short run. What it learns in so few steps is told, and not judged."""
    from seer_pipe.shards import ShardSet

    images = len(ShardSet.open(check.shards))
    batch = 8 if check.cpu else min(256, 2 ** ((images // 4).bit_length() - 1))
    seen = 24 if check.cpu else max(30_000, images)
    run, started = fresh(check.folder / "learnt"), time.monotonic()
    command = recipe(
        check, "imagenette_resnet18", "train.epochs=null", f"train.images={seen}", f"train.batch={batch}",
        "train.channels_last=true", *(TINY if check.cpu else ()),
    )  # fmt: skip
    python(*command[1:], "--out", run)
    seconds = time.monotonic() - started
    return {"kNN before": knn(run, check, "--untrained"), "kNN after": knn(run, check),
            "loss": metrics(run)[-1]["loss"], "images/s, start and end included": seen / seconds}  # fmt: skip


def export(check: Check) -> Figures:
    """Each number of the reloaded backbone is compared by `export`; here it is used."""
    run, out, found = check.folder / "learnt", fresh(check.folder / "backbone"), check.folder / "learn.json"
    if not found.exists():
        raise SystemExit("no run: the part 'learn' comes first")
    python(*seer_pipe("export", run, "--out", out)[1:])
    figures = {"kNN of the run": json.loads(found.read_text())["kNN after"], "kNN of the export": knn(out, check)}
    if abs(figures["kNN of the run"] - figures["kNN of the export"]) > 0.01:
        raise SystemExit(f"the export is another backbone: {figures}")
    return figures


def engines(check: Check) -> Figures:
    """One rank and, where there are two GPUs, two, by each engine that shards, beside a process alone."""
    import torch

    gpus = torch.cuda.device_count()
    ways = [(2, "fsdp2")] if check.cpu else [(1, "fairscale")] if gpus < 2 else [(2, "fsdp2"), (2, "fairscale")]
    batch, steps = (8, 3) if check.cpu else (32, 20)
    settings = ["train.precision=fp32", "train.epochs=null", f"train.batch={batch}", f"train.images={batch * steps}",
                "train.log_every=1", "train.log_to=[]", "train.channels_last=false",
                *(TINY if check.cpu else ())]  # fmt: skip
    command = recipe(check, "quickstart", *settings)[1:]
    alone, figures = fresh(check.folder / "alone"), Figures()
    python(*command, "--out", alone)
    for ranks, engine in ways:
        spread = fresh(check.folder / engine)
        python("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", ranks, *command,
               f"train.parallel={engine}", "--out", spread)  # fmt: skip
        figures[f"{engine}, {ranks} ranks: largest difference of a loss"] = apart(losses(spread), losses(alone))
    return figures


def step(check: Check) -> Figures:
    """Candidates for a faster step beside the plain step, ratios to it, and the bound.

    The most promising first; what there is no time for is said, and neither a failure nor a hang costs the others.
    """
    end, figures = time.monotonic() + SECONDS_OF_STEP, Figures()
    trunks, more, ways = TRUNKS, OTHER_TRUNKS, CANDIDATES
    size: tuple[object, ...] = ("--crops", CROPS, "--batch", BATCH, "--rounds", 3)
    steps: tuple[object, ...] = ("--synthetic", "--steps", 5)
    if check.cpu:
        trunks, more, ways = ("resnet18",), (), CANDIDATES[:1]
        size, steps = ("--crops", "2x32", "--batch", 4, "--rounds", 1), ("--synthetic", "--steps", 1)
    plan: list[tuple[str, tuple[str, ...]]] = [(trunk, some) for some in ways[:2] for trunk in trunks]
    plan += [(trunk, (FUSED,)) for trunk in trunks if trunk.startswith("regnet")]
    plan += [(trunk, ()) for trunk in trunks]  # the bound
    plan += [(trunk, some) for some in OTHER_CANDIDATES for trunk in more]
    plan += [(trunk, some) for some in ways[2:] for trunk in trunks]
    for trunk, some in plan:
        command = ("train.py", trunk, "--ways", *some, *size, *steps) if some else ("roofline.py", trunk, *size)
        found = trial(check, command, min(SECONDS_OF_TRIAL, end - time.monotonic()))
        if isinstance(found, str):
            figures |= {f"{trunk}, {way}": found for way in some or ("bound",)}
        elif some:
            for way in some:
                figures[f"{trunk}, {way}, to the plain step"] = found[trunk][f"ours, {way}"]["to_plain"]
                figures[f"{trunk}, {way}, images/s"] = found[trunk][f"ours, {way}"]["images_per_s"]
        else:
            bound = found["trunks"][trunk]
            figures |= {f"{trunk}, bound, {key}": bound[key] for key in ("arithmetic_ms", "fused_ms", "separate_ms")}
            figures |= {f"{trunk}, step in {layout}, ms": ms for layout, ms in bound["step_ms"].items()}
            figures |= {f"{trunk}, convolutions alone in {way}, ms": ms for way, ms in bound["alone_ms"].items()}
    if not any(isinstance(value, float) for value in figures.values()):
        raise SystemExit(f"no candidate could be measured: {figures}")
    return figures


def detection(check: Check) -> Figures:
    """What plain operators stand in for where torchvision's do not load. Ranks of one GPU cannot talk by NCCL."""
    python("-c", "from torchvision.extension import _assert_has_ops; _assert_has_ops()")
    python("-m", "pytest", "-m", "slow or not slow", "-k", "not ranks", "tests/evaluate/test_detection.py",
           "tests/evaluate/test_detection_learns.py")  # fmt: skip
    return {}


def pretext(check: Check) -> Figures:
    """How much of a pretext task is told right in the end, and the kNN of each stage; told, and not judged."""
    figures = Figures()
    for name in PRETEXT[:1] if check.cpu else PRETEXT:
        run = fresh(check.folder / name)
        tiny = ["train.epochs=null", "train.images=16", "train.batch=8", "train.log_every=1"]
        settings = tiny if check.cpu else [f"train.epochs={EPOCHS}", "train.channels_last=true"]
        python(*recipe(check, f"{name}_imagenette", *settings)[1:], "--out", run)
        rows = metrics(run)
        last = rows[len(rows) * 9 // 10 :]
        right = sum(row["pretext_accuracy"] for row in last) / len(last)
        stages = evaluated(run, check, "--stage", "all")["stages"]
        figures |= {f"{name}, told right": right}
        figures |= {f"{name}, kNN of stage {stage}": found["accuracy"] for stage, found in stages.items()}
    return figures


def trial(check: Check, command: Sequence[object], seconds: float) -> Any:
    """What a benchmark found, or in words why nothing. All that it started ends with it."""
    if seconds < LEAST_SECONDS:
        return "no time left"
    out = check.folder / "trial.json"
    out.unlink(missing_ok=True)
    words = [sys.executable, f"benchmarks/{command[0]}", *map(str, command[1:]), "--json", str(out)]
    with subprocess.Popen(words, process_group=0) as process:
        try:
            code: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
    if code is None:
        return f"stopped after {seconds:.0f} s"
    return json.loads(out.read_text()) if code == 0 and out.exists() else f"failed, exit code {code}"


PARTS: dict[str, Callable[[Check], Figures]] = {
    part.__name__: part
    for part in (data, tests, kernels, loader, batch, train, memory, resume, learn, export, engines, step, detection,
                 pretext)
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("part", choices=PARTS)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--data", type=Path)
    parser.add_argument("--cpu", action="store_true")
    args = parser.parse_args()
    figures = PARTS[args.part](Check(args.folder, args.data, args.cpu))
    if figures:
        (args.folder / f"{args.part}.json").write_text(json.dumps(figures))


if __name__ == "__main__":
    main()
