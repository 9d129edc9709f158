"""A training step of this project beside a plain SwAV step in PyTorch: same trunks, weights and crops, in one run.

    python benchmarks/train.py [TRUNK …] [--crops 2x224+6x96] [--batch 64] [--ways …] [--data SHARDS] [--json FILE]

The plain step is what SwAV's published code amounts to: fp16 autocast with a scaler (float32 on a CPU), NCHW, nothing
compiled, LARC parameter by parameter, Sinkhorn crop by crop with its collectives, one forward a crop size. Ours is
tried in several ways, each of which is a setting of `train`. Steps are taken in turns, so that a busy machine slows
all alike; figures are medians of the rounds. Then the best way takes its crops from the real loader. On a CPU one
thread trains, and seconds are of its processor time; those with the loader, which works beside it, of the clock.

    images/s   of one step
    forward, head, loss, backward, update: milliseconds. Head is projection and prototypes, both ways; update is all
               else: optimiser, scaler, guard, normalised prototypes
    outside    share of the step outside the trunk's forward and backward
    GB         peak above what was held before the network was built (GPU: allocated; CPU: resident)
    TFLOP/s    of the model: 3 forward passes of multiply-adds, nothing computed again counted; share of the peak
               of a matrix product measured here (GPU: bf16, CPU: float32)
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import math
import statistics
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import groupby, pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from seer_pipe import config as settings
from seer_pipe.data.loader import Loader
from seer_pipe.data.order import slots_of
from seer_pipe.data.sources import open_data
from seer_pipe.distributed.world import World, join
from seer_pipe.objectives.base import Moment
from seer_pipe.objectives.swav.objective import SwavHead
from seer_pipe.train import build
from seer_pipe.train.doctor import training_flops
from seer_pipe.train.health import Guard
from seer_pipe.train.restore import zero_state
from seer_pipe.train.step import TrainStep

PARTS = ("wait", "forward", "head", "loss", "backward", "update")
WAYS = ("eager", "channels_last", "compile", "channels_last+compile")
SCALES = ([0.14, 1.0], [0.05, 0.14])
WARM_UP = 3

Crops = Sequence[Tensor]


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    large, little = ["resnet50", "resnext101_32x8d", "regnety_16gf", "regnety_32gf"], ["resnet50", "regnety_1_6gf"]
    parser.add_argument("trunks", nargs="*", metavar="TRUNK", default=large if on_gpu else little)
    parser.add_argument("--crops", default="2x224+6x96" if on_gpu else "2x64+6x32", help="COUNTxSIZE, the large first")
    parser.add_argument("--batch", type=int, default=64 if on_gpu else 8)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=WAYS if on_gpu else WAYS[:2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10 if on_gpu else 1, help="a round")
    parser.add_argument("--threads", type=int, default=8 if on_gpu else 1, help="of the loader")
    parser.add_argument("--data", help="shard set for the real loader (default: pictures drawn for it)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="train-") as scratch, join("auto") as world:
        # a group of one, so that the collectives of a step are there
        dist.init_process_group("nccl" if on_gpu else "gloo", f"file://{scratch}/group", rank=0, world_size=1)
        data = args.data or draw_set(Path(scratch))
        peak = matrix_peak(world.device)
        name = torch.cuda.get_device_name() if on_gpu else "one CPU core"
        print(f"{name}: matrix product {peak / 1e12:.3g} TFLOP/s; {args.crops}, batch {args.batch}")
        results = {trunk: measure(trunk, args, world, data, peak) for trunk in args.trunks}
        dist.destroy_process_group()
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


def recipe(trunk: str, args: argparse.Namespace, data: str, way: str) -> settings.Config:
    plan = [part.split("x") for part in args.crops.split("+")]
    chosen = {name: name in way.split("+") for name in ("channels_last", "compile")}
    return settings.parse({
        "name": "benchmark",
        "data": {"path": data, "threads": args.threads},
        "views": {"crops": [{"count": int(count), "size": int(size), "scale": scale}
                            for (count, size), scale in zip(plan, SCALES, strict=False)]},
        "model": {"name": trunk},
        "objective": {"name": "swav", "allow_empty_prototypes": True},
        "optimizer": {"name": "larc", "lr": 0.3},
        "train": {"batch": args.batch, "images": 10**9, **chosen},
    }, "benchmark")  # fmt: skip


class Marks:
    """Seconds between marks, by the name of the later one. On a GPU marks are events in its stream: nothing waits."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu, self._marks = device.type == "cuda", list[tuple[str, Any]]()
        self.clock: Callable[[], float] = time.process_time

    def __call__(self, name: str) -> None:
        moment: Any = self.clock()
        if self._on_gpu:
            moment = torch.cuda.Event(enable_timing=True)
            moment.record()
        self._marks.append((name, moment))

    def take(self) -> dict[str, float]:
        if self._on_gpu:
            torch.cuda.synchronize()
        found: dict[str, float] = defaultdict(float)
        for (_, before), (name, after) in pairwise(self._marks):
            found[name] += before.elapsed_time(after) / 1e3 if self._on_gpu else after - before
        self._marks.clear()
        return found

    def around_head(self, head: nn.Module) -> None:
        """The trunk's part of forward and backward apart from the head's."""

        def before(_: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            self("forward")
            if inputs[0].requires_grad:
                inputs[0].register_hook(lambda _: self("head"))

        head.register_forward_pre_hook(before)

    def after(self, name: str, function: Callable[..., Any], before: str | None = None) -> Callable[..., Any]:
        def marked(*args: Any, **options: Any) -> Any:
            if before is not None:
                self(before)
            result = function(*args, **options)
            self(name)
            return result

        return marked


def ours(config: settings.Config, world: World, marks: Marks) -> Callable[[Crops], Tensor]:
    made = build.spread_network(config, world)
    optimizer = build.build_optimizer(config.optimizer, made.network)
    zero_state(optimizer)
    objective, guard = made.objective, Guard(made.network, optimizer, made.objective, world.device)
    derived = settings.derive(config, 10**6)
    step = TrainStep(config, derived, made, optimizer, world, guard)
    marks.around_head(objective.head)
    objective.before_step = marks.after("update", objective.before_step)  # type: ignore[method-assign]
    objective.loss = marks.after("loss", objective.loss, "head")  # type: ignore[method-assign]
    objective.after_backward = marks.after("update", objective.after_backward, "backward")  # type: ignore[method-assign]
    seen = 0

    def once(crops: Crops) -> Tensor:
        nonlocal seen
        told = step(crops, Moment(seen, derived.images), log=seen == 0)
        guard.verdicts()
        marks("update")
        seen += config.train.batch
        return told.get("loss", torch.tensor(math.nan))  # type: ignore[return-value]

    return once


def plain(config: settings.Config, world: World, marks: Marks) -> Callable[[Crops], Tensor]:
    """SwAV's step as published (Caron et al. 2020), with torch's own mixed precision in the place of apex's."""
    network, wanted = build.build_network(config).to(world.device), config.objective
    head: SwavHead = network.head  # type: ignore[assignment]
    parameters = list(network.parameters())
    optimizer = torch.optim.SGD(parameters, lr=0.0, momentum=0.9)
    derived, seen, on_gpu = settings.derive(config, 10**6), 0, world.device.type == "cuda"
    scaler = torch.amp.GradScaler(world.device.type, enabled=on_gpu)
    marks.around_head(head)

    def once(crops: Crops) -> Tensor:
        nonlocal seen
        for group in optimizer.param_groups:
            group["lr"] = build.rate_at(config.optimizer, derived, seen)
        with torch.no_grad():
            head.prototypes.weight.copy_(F.normalize(head.prototypes.weight, dim=1))
        optimizer.zero_grad()
        marks("update")
        with torch.autocast(world.device.type, torch.float16, enabled=on_gpu):
            same_size = [torch.cat(list(some)) for _, some in groupby(crops, lambda crop: crop.shape[-1])]
            scores = head(torch.cat([network.trunk(images) for images in same_size])).scores
        marks("head")
        by_crop = scores.float().chunk(len(crops))
        loss = torch.zeros((), device=world.device)
        for assigned in wanted.assign:
            code = plain_sinkhorn(by_crop[assigned].detach(), wanted.epsilon, wanted.sinkhorn_iterations)
            for crop, others in enumerate(by_crop):
                if crop != assigned:
                    loss = loss - (code * F.log_softmax(others / wanted.temperature, dim=1)).sum(dim=1).mean()
        loss = loss / (len(wanted.assign) * (len(crops) - 1))
        marks("loss")
        scaler.scale(loss).backward()
        marks("backward")
        scaler.unscale_(optimizer)
        plain_larc(parameters, config.optimizer.trust, config.optimizer.weight_decay)
        scaler.step(optimizer)
        scaler.update()
        marks("update")
        seen += config.train.batch
        return loss.detach()

    return once


@torch.no_grad()
def plain_sinkhorn(scores: Tensor, eps: float, iterations: int) -> Tensor:
    q = torch.exp(scores / eps).T
    total = q.sum()
    dist.all_reduce(total)
    q = q / total
    for _ in range(iterations):
        rows = q.sum(dim=1, keepdim=True)
        dist.all_reduce(rows)
        q = q / rows / q.shape[0]
        q = q / q.sum(dim=0, keepdim=True) / q.shape[1]
    return (q * q.shape[1]).T


@torch.no_grad()
def plain_larc(parameters: list[nn.Parameter], trust: float, decay: float) -> None:
    for p in parameters:
        if p.grad is not None:
            weight, gradient = p.norm(), p.grad.norm()
            if weight != 0 and gradient != 0:  # read back, as apex's does
                p.grad.add_(p, alpha=decay).mul_(trust * weight / (gradient + decay * weight + 1e-8))


class Memory:
    """Peak GB since it was made."""

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        gc.collect()
        if self._on_gpu:
            torch.cuda.reset_peak_memory_stats()
            self._held = float(torch.cuda.memory_allocated())
        else:
            ctypes.CDLL(None).malloc_trim(0)
            Path("/proc/self/clear_refs").write_text("5")  # the peak is what is resident now
            self._held = resident("VmRSS")

    def peak(self) -> float:
        return ((torch.cuda.max_memory_allocated() if self._on_gpu else resident("VmHWM")) - self._held) / 1e9


def resident(which: str) -> float:
    status = Path("/proc/self/status").read_text()
    return 1024.0 * int(status.split(f"{which}:")[1].split()[0])


def measure(trunk: str, args: argparse.Namespace, world: World, data: str, peak: float) -> dict[str, Any]:
    marks = Marks(world.device)
    ways = {"plain SwAV": (plain, "eager"), **{f"ours, {way}": (ours, way) for way in args.ways}}
    steps: dict[str, Callable[[Crops], Tensor]] = {}
    memory: dict[str, float] = {}
    first: dict[str, float] = {}
    crops = synthetic(recipe(trunk, args, data, "eager"), world)
    for name, (make, way) in ways.items():
        held = Memory(world.device)
        steps[name] = make(recipe(trunk, args, data, way), world, marks)
        first[name] = float(steps[name](crops))
        for _ in range(WARM_UP - 1):
            steps[name](crops)
        memory[name] = held.peak()
    if max(first.values()) - min(first.values()) > (0.1 if world.device.type == "cuda" else 1e-4):
        sys.exit(f"{trunk}: the ways do not compute the same loss: {first}")
    rounds: dict[str, list[dict[str, float]]] = {name: [] for name in ways}
    for _ in range(args.rounds):
        for name, step in steps.items():
            rounds[name].append(timed(step, iter([crops] * args.steps), args, marks))
    flops = training_flops(recipe(trunk, args, data, "eager"))
    print(f"\n{trunk:28} images/s" + "".join(f"{part:>9}" for part in PARTS) + "  outside      GB  TFLOP/s   share")
    table = {name: line(name, of, flops, peak, memory[name], args) for name, of in rounds.items()}
    best = max(table, key=lambda name: table[name]["images_per_s"] if name != "plain SwAV" else 0.0)
    config = recipe(trunk, args, data, ways[best][1])
    loaded, alone = [], []
    marks.clock = time.perf_counter
    with closing(open_loader(config, world)) as loader:
        for number in range(args.rounds):
            batches = loader.batches(number * args.steps, (number + 1) * args.steps)
            loaded.append(timed(steps[best], (batch.crops for batch in batches), args, marks))
            alone.append(timed(steps[best], iter([crops] * args.steps), args, marks))
    table["real loader"] = line(f"{best}, real loader", loaded, flops, peak, math.nan, args)
    for name in [name for name in ways if name != "plain SwAV"]:
        print(f"{name} / plain SwAV: {ratio(rounds[name], rounds['plain SwAV']):.2f}")
    print(f"real loader / synthetic: {ratio(loaded, alone):.3f}")
    return table


def timed(
    step: Callable[[Crops], Tensor], batches: Iterator[Crops], args: argparse.Namespace, marks: Marks
) -> dict[str, float]:
    """Seconds by part of a step, the mean of a round."""
    marks("start")
    for crops in batches:
        marks("wait")
        step(crops)
    return {part: seconds / args.steps for part, seconds in marks.take().items()}


def line(
    name: str, rounds: list[dict[str, float]], flops: float, peak: float, memory: float, args: argparse.Namespace
) -> dict[str, float]:
    parts = {part: statistics.median(of.get(part, 0.0) for of in rounds) for part in PARTS}
    whole = statistics.median(sum(of.values()) for of in rounds)
    rate = args.batch / whole
    told = {
        "images_per_s": rate,
        **{f"{part}_ms": 1e3 * seconds for part, seconds in parts.items()},
        "outside": 1 - (parts["forward"] + parts["backward"]) / whole,
        "gb": memory,
        "teraflops": rate * flops / 1e12,
        "share": rate * flops / peak,
    }
    print(f"{name:28} {rate:8.1f}" + "".join(f"{1e3 * parts[part]:9.2f}" for part in PARTS)
          + f"{told['outside']:9.1%}{memory:8.2f}{told['teraflops']:9.3g}{told['share']:8.1%}")  # fmt: skip
    return told


def ratio(rounds: list[dict[str, float]], others: list[dict[str, float]]) -> float:
    """Of images a second, round by round."""
    return statistics.median(sum(b.values()) / sum(a.values()) for a, b in zip(rounds, others, strict=True))


def synthetic(config: settings.Config, world: World) -> list[Tensor]:
    generator = torch.Generator(world.device).manual_seed(0)
    sizes = [crop.size for crop in config.views.crops for _ in range(crop.count)]
    shapes = [(config.train.batch, 3, size, size) for size in sizes]
    return [torch.randn(shape, device=world.device, generator=generator) for shape in shapes]


def open_loader(config: settings.Config, world: World) -> Loader:
    shards, plan = open_data(config.data, config.train.batch, config.seed)
    return Loader(
        shards, plan, slots_of(0, 1, config.train.batch), build.build_crops(config.views), seed=config.seed,
        device=world.device.type, threads=config.data.threads,
        layout=build.layout(config.train, build.outline(config).trunk, world),
        dtype=build.precision(config.train, world) or torch.float32,
    )  # fmt: skip


def draw_set(root: Path) -> str:
    """Drawn pictures as a shard set, for want of a real one."""
    import io

    from seer_pipe.quickstart.draw import KINDS, picture
    from seer_pipe.shards import ShardWriter, write_manifest
    from seer_pipe.store import open_store

    store, kinds = open_store(root / "set"), sorted(KINDS)
    writer = ShardWriter(store, "00000.tar")
    for number in range(256):
        image, file = picture(kinds[number % len(kinds)], number).resize((500, 375)), io.BytesIO()
        image.save(file, "JPEG")
        writer.add(f"{number:06d}", file.getvalue(), source=f"{number}.jpg", width=image.width, height=image.height)
    writer.commit()
    write_manifest(store, ["00000.tar"])
    return str(root / "set")


def matrix_peak(device: torch.device) -> float:
    """FLOP/s of a large matrix product, the best of ten."""
    on_gpu = device.type == "cuda"
    size, dtype = (8192, torch.bfloat16) if on_gpu else (1024, torch.float32)
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    marks, best = Marks(device), math.inf
    for _ in range(10):
        marks("start")
        a @ b
        marks("product")
        best = min(best, marks.take()["product"])
    return 2 * size**3 / best


if __name__ == "__main__":
    main()
