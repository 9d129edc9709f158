"""A training step of this project beside a plain SwAV step in PyTorch: same trunks, weights and crops, in one run.

    python benchmarks/train.py [TRUNK …] [--crops 2x224+6x96] [--batch 64] [--ways …] [--data SHARDS] [--json FILE]

A way is words joined by +: `eager`, or any of the settings `channels_last`, `cudnn_benchmark`, `fused_bn`, `compile`
and `fsdp2` (of one rank), and the whole trunk compiled: `compile_trunk`, `max_autotune`, `cuda_graphs`. cuDNN keeps the
plan that it first had for a shape, so ways with and without `cudnn_benchmark` of one layout want a process each.

The plain step is what SwAV's published code amounts to: fp16 autocast with a scaler (float32 on a CPU), NCHW, nothing
compiled, LARC parameter by parameter, Sinkhorn crop by crop with its collectives, one forward a crop size. Ours is
tried in several ways. Steps are taken in turns, so that a busy machine slows all alike; figures are medians of the
rounds. Then, unless --synthetic, the best way takes its crops from the real loader. On a CPU one thread trains, and
seconds are of its processor time; those with the loader, which works beside it, of the clock.

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
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from marks import Marks, Memory, matrix_peak  # beside this file
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
SETTINGS = ("channels_last", "cudnn_benchmark", "fused_bn", "compile")
#: torch.compile's mode for the whole trunk, by word.
MODES = {"compile_trunk": "default", "max_autotune": "max-autotune-no-cudagraphs", "cuda_graphs": "reduce-overhead"}
WORDS = ("eager", *SETTINGS, "fsdp2", *MODES)
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
    parser.add_argument("--ways", nargs="+", type=known, default=WAYS if on_gpu else WAYS[:2])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--steps", type=int, default=10 if on_gpu else 1, help="a round")
    parser.add_argument("--threads", type=int, default=8 if on_gpu else 1, help="of the loader")
    parser.add_argument("--synthetic", action="store_true", help="without the real loader")
    parser.add_argument("--data", help="shard set for the real loader (default: pictures drawn for it)")
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="train-") as scratch, join("auto") as world:
        # a group of one, so that the collectives of a step are there
        dist.init_process_group("nccl" if on_gpu else "gloo", f"file://{scratch}/group", rank=0, world_size=1)
        data = args.data or ("unused" if args.synthetic else draw_set(Path(scratch)))
        peak = matrix_peak(world.device)
        name = torch.cuda.get_device_name() if on_gpu else "one CPU core"
        print(f"{name}: matrix product {peak / 1e12:.3g} TFLOP/s; {args.crops}, batch {args.batch}")
        results = {trunk: measure(trunk, args, world, data, peak) for trunk in args.trunks}
        dist.destroy_process_group()
    if args.json:
        args.json.write_text(json.dumps(results, indent=1))


def known(way: str) -> str:
    if unknown := set(way.split("+")) - set(WORDS):
        raise argparse.ArgumentTypeError(f"{', '.join(sorted(unknown))}: a way is made of {', '.join(WORDS)}")
    return way


def recipe(trunk: str, args: argparse.Namespace, data: str, way: str) -> settings.Config:
    plan = [part.split("x") for part in args.crops.split("+")]
    words = way.split("+")
    chosen: dict[str, Any] = {name: name in words for name in SETTINGS}
    chosen["parallel"] = "fsdp2" if "fsdp2" in words else "none"
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


def ours(config: settings.Config, world: World, marks: Marks, way: str = "eager") -> Callable[[Crops], Tensor]:
    made = build.spread_network(config, world)
    trunk = made.network.trunk
    for word in MODES.keys() & set(way.split("+")):
        trunk.forward = torch.compile(trunk.forward, dynamic=False, mode=MODES[word])  # type: ignore[method-assign]
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
        torch.backends.cudnn.benchmark = config.train.cudnn_benchmark
        told = step(crops, Moment(seen, derived.images), log=seen == 0)
        guard.verdicts()
        marks("update")
        seen += config.train.batch
        return told.get("loss", torch.tensor(math.nan))  # type: ignore[return-value]

    return once


def plain(config: settings.Config, world: World, marks: Marks, _way: str) -> Callable[[Crops], Tensor]:
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
        torch.backends.cudnn.benchmark = False
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


def measure(trunk: str, args: argparse.Namespace, world: World, data: str, peak: float) -> dict[str, Any]:
    marks = Marks(world.device)
    ways = {"plain SwAV": (plain, "eager"), **{f"ours, {way}": (ours, way) for way in args.ways}}
    steps: dict[str, Callable[[Crops], Tensor]] = {}
    memory: dict[str, float] = {}
    first: dict[str, float] = {}
    crops = synthetic(recipe(trunk, args, data, "eager"), world)
    for name, (make, way) in ways.items():
        held = Memory(world.device)
        steps[name] = make(recipe(trunk, args, data, way), world, marks, way)
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
    for name in [name for name in ways if name != "plain SwAV"]:
        table[name]["to_plain"] = ratio(rounds[name], rounds["plain SwAV"])
        print(f"{name} / plain SwAV: {table[name]['to_plain']:.2f}")
    if args.synthetic:
        return table
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
        shards, plan, slots_of(0, 1, config.train.batch), build.build_crops(config), seed=config.seed,
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


if __name__ == "__main__":
    main()
