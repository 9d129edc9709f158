"""Where the time of a trunk's step must go: each layer's arithmetic and traffic at the rates of this machine.

    python benchmarks/roofline.py [TRUNK …] [--crops 2x224+6x96] [--batch 64] [--rates TFLOP/S TB/S] [--json FILE]

Every operation of the trunk's forward and backward is counted on the meta device: its floating-point operations, and
the bytes of the tensors that it takes and gives, each read or written once. (BatchNorm in training reads its input
twice where it does not fit a cache; that is not counted.) At the machine's rates, a large matrix product and a large
copy, both measured at the start, each operation takes at least the longer of its two times.

    arithmetic  all floating-point operations at the matrix rate: what no kernel can beat
    fused       convolutions alone, each the longer of its two times: everything else done on the way
    separate    every operation a kernel of its own, as eager PyTorch runs them
    alone       the best measured time of each convolution alone, forward and backward, in either layout; on CUDA also
                with cuDNN's benchmark mode, in a process of its own, for cuDNN keeps the plan that it first had for a
                shape
    step        the trunk's forward and backward in a training step of this project, in either layout

A CPU computes in float32 on one thread, and seconds are of its processor time; CUDA in bf16. ``--rates``: of another
machine, in 16 bits; then nothing is measured.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from marks import Marks, matrix_peak  # beside this file
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.module_tracker import ModuleTracker
from train import ours, recipe, synthetic  # beside this file

from seer_pipe.distributed.world import World
from seer_pipe.models import build_trunk
from seer_pipe.models.regnet import SqueezeExcitation, YBlock
from seer_pipe.models.resnet import BasicBlock, Bottleneck

LAYOUTS = {"NCHW": torch.contiguous_format, "NHWC": torch.channels_last}
KINDS = {nn.Conv2d: "convolution", nn.BatchNorm2d: "BatchNorm", nn.ReLU: "ReLU", SqueezeExcitation: "excitation",
         YBlock: "residual sum", BasicBlock: "residual sum", Bottleneck: "residual sum"}  # fmt: skip
COPIED = 2**28  # bytes, past every cache


class Rates(NamedTuple):
    matrix: float  # FLOP/s
    copy: float  # bytes/s, read and written


class Convolution(NamedTuple):
    """A convolution's shapes, hashable; ``first``: its input needs no gradient."""

    input: tuple[int, ...]
    weight: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    groups: int
    first: bool


@dataclass
class Layer:
    """Layers that are alike: the same module, on inputs of the same shape."""

    label: str
    kind: str
    names: set[str] = field(default_factory=set)
    operations: list[tuple[float, float]] = field(default_factory=list)  # FLOPs and bytes of each
    convolution: Convolution | None = None

    @property
    def flops(self) -> float:
        return sum(flops for flops, _ in self.operations)

    @property
    def bytes(self) -> float:
        return sum(moved for _, moved in self.operations)

    def seconds(self, rates: Rates) -> float:
        return sum(max(flops / rates.matrix, moved / rates.copy) for flops, moved in self.operations)


class Tally(TorchDispatchMode):
    """Counts what runs within it, by layer of ``network``, forward and backward."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.layers: dict[str, Layer] = {}
        self._modules = {f"{type(network).__name__}.{name}": module for name, module in network.named_modules()}
        self._tracker = ModuleTracker()
        self._convolutions: dict[str, str] = {}  # label of each, by name

    def __enter__(self) -> Tally:
        self._tracker.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._tracker.__exit__(*error)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        if not func.is_view:
            self._count(func, args, kwargs or {}, out)
        return out

    def _count(self, func: Any, args: Any, kwargs: Any, out: Any) -> None:
        first = next((leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)), None)
        if first is None or first.dim() == 0:  # a counter of batches
            return
        name = max(self._tracker.parents, key=lambda parent: parent.count("."))
        module = self._modules.get(name)
        label = f"{describe(module)} -> {'x'.join(map(str, first.shape[1:]))}"
        if isinstance(module, nn.Conv2d):
            label = self._convolutions.setdefault(name, label)  # its backward's too
        layer = self.layers.setdefault(label, Layer(label, KINDS.get(type(module), "other")))
        layer.names.add(name)
        moved = sum(leaf.nbytes for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, Tensor))
        layer.operations.append((flops_of(func, args, out), float(moved)))
        if func is torch.ops.aten.convolution.default:
            image, weight, _, stride, padding, _, _, _, groups = args
            layer.convolution = Convolution(
                tuple(image.shape), tuple(weight.shape), tuple(stride), tuple(padding), groups, not image.requires_grad
            )


def flops_of(func: Any, args: Any, out: Any) -> float:
    """Of a convolution, and of its gradients, each as many; all else is not counted."""
    if func is torch.ops.aten.convolution.default:
        return 2.0 * out.numel() * args[1][0].numel()
    if func is torch.ops.aten.convolution_backward.default:  # torch's own formula counts groups as if there were none
        gradients = sum(gradient is not None for gradient in out[:2])
        return 2.0 * args[0].numel() * args[2][0].numel() * gradients
    return 0.0


def describe(module: nn.Module | None) -> str:
    if isinstance(module, nn.Conv2d):
        groups = f" in {module.groups} groups" if module.groups > 1 else ""
        stride = f" stride {module.stride[0]}" if module.stride[0] > 1 else ""
        kernel = "x".join(map(str, module.kernel_size))
        return f"{kernel} {module.in_channels}-{module.out_channels}{groups}{stride}"
    return "the rest" if module is None else type(module).__name__


def count(trunk: str, rows: int, size: int, dtype: torch.dtype) -> list[Layer]:
    """The layers of a trunk over so many crops of ``size`` pixels, as one batch."""
    with torch.device("meta"):
        network = build_trunk(trunk).to(dtype).train()
        images = torch.empty(rows, 3, size, size, dtype=dtype)
        with Tally(network) as tally:
            features = network(images)
            features.backward(torch.empty_like(features))
    return list(tally.layers.values())


def copy_rate(device: torch.device) -> float:
    """Bytes/s, read and written, of a large copy, the best of ten."""
    source = torch.ones(COPIED // 4, device=device)
    target = torch.empty_like(source)
    return 2 * COPIED / best(lambda: target.copy_(source), Marks(device), 10)


def best(work: Callable[[], Any], marks: Marks, rounds: int, calls: int = 1) -> float:
    """Seconds of a call; a round has several, so that a GPU's launches hide behind one another."""
    found = math.inf
    for _ in range(rounds + 1):  # the first warms up
        marks("start")
        for _ in range(calls):
            work()
        marks("work")
        found = min(found, marks.take()["work"] / calls)
    return found


def alone(
    convolutions: Sequence[Convolution], device: str, dtype: torch.dtype, rounds: int, benchmark: bool
) -> dict[str, list[float]]:
    """Seconds of each convolution's forward and backward by layout, in the order given."""
    torch.set_num_threads(1)
    torch.backends.cudnn.benchmark = benchmark
    calls = 10 if device == "cuda" else 1
    marks = Marks(torch.device(device))
    return {
        f"{name}{', benchmark' if benchmark else ''}": [
            sum(best(work, marks, rounds, calls) for work in works(convolution, device, dtype, layout))
            for convolution in convolutions
        ]
        for name, layout in LAYOUTS.items()
    }


def works(
    convolution: Convolution, device: str, dtype: torch.dtype, layout: torch.memory_format
) -> tuple[Callable[[], Any], Callable[[], Any]]:
    """Its forward, and its backward."""

    def random(shape: Sequence[int]) -> Tensor:
        return torch.randn(*shape, device=device).to(dtype).contiguous(memory_format=layout)

    image, weight = random(convolution.input), random(convolution.weight)
    how = (convolution.stride, convolution.padding, (1, 1), False, (0, 0), convolution.groups)
    gradient = random(torch.ops.aten.convolution(image, weight, None, *how).shape)
    wanted = [not convolution.first, True, False]
    return (
        lambda: torch.ops.aten.convolution(image, weight, None, *how),
        lambda: torch.ops.aten.convolution_backward(gradient, image, weight, None, *how, wanted),
    )


def each_alone(
    convolutions: Sequence[Convolution], device: str, dtype: torch.dtype, rounds: int
) -> dict[str, list[float]]:
    if device == "cpu":
        return alone(convolutions, device, dtype, rounds, False)
    found: dict[str, list[float]] = {}
    for benchmark in (False, True):
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as process:
            found |= process.submit(alone, convolutions, device, dtype, rounds, benchmark).result()
    return found


def step_seconds(trunk: str, args: argparse.Namespace, device: torch.device) -> dict[str, float]:
    """Of the trunk's forward and backward in a training step, by layout; medians."""
    world, found = World(0, 1, device), {}
    for name, way in (("NCHW", "eager"), ("NHWC", "channels_last")):
        config, marks = recipe(trunk, args, "unused", way), Marks(device)
        once, crops, rounds = ours(config, world, marks), synthetic(config, world), []
        for _ in range(args.rounds + 1):
            marks("start")
            once(crops)
            parts = marks.take()
            rounds.append(parts["forward"] + parts["backward"])
        found[name] = statistics.median(rounds[1:])
    return found


def measure(trunk: str, args: argparse.Namespace, rates: Rates, device: torch.device | None) -> dict[str, Any]:
    """Print the layers and the sums of a trunk, and return the sums; ``device``: to measure on, or None."""
    dtype = torch.float32 if device is not None and device.type == "cpu" else torch.bfloat16
    plan = [tuple(map(int, part.split("x"))) for part in args.crops.split("+")]
    layers = [layer for number, size in plan for layer in count(trunk, number * args.batch, size, dtype)]
    convolutions = [layer for layer in layers if layer.convolution is not None]
    flops = sum(layer.flops for layer in layers)
    bound: dict[str, float] = defaultdict(float)
    for layer in layers:
        bound[layer.kind] += 1e3 * layer.seconds(rates)
    found: dict[str, Any] = {
        "gflop": flops / 1e9, "gb": sum(layer.bytes for layer in layers) / 1e9,
        "arithmetic_ms": 1e3 * flops / rates.matrix, "fused_ms": bound["convolution"],
        "separate_ms": sum(bound.values()), "separate_ms_by_kind": dict(bound),
    }  # fmt: skip
    measured: dict[str, list[float]] = {}
    if device is not None:
        shapes = [layer.convolution for layer in convolutions if layer.convolution is not None]
        measured = {
            way: [1e3 * len(layer.names) * seconds for layer, seconds in zip(convolutions, of, strict=True)]
            for way, of in each_alone(shapes, device.type, dtype, args.rounds).items()
        }
        steps = {layout: 1e3 * seconds for layout, seconds in step_seconds(trunk, args, device).items()}
        found |= {
            "alone_ms": {way: sum(of) for way, of in measured.items()},
            "best_alone_ms": sum(map(min, zip(*measured.values(), strict=True))), "step_ms": steps,
            "step_to_fused": min(steps.values()) / found["fused_ms"],
            "step_to_separate": min(steps.values()) / found["separate_ms"],
        }  # fmt: skip
    print(f"\n{trunk}, {args.crops}, batch {args.batch}, forward and backward; milliseconds of all that are alike")
    print(f"{'layer':44}{'alike':>6}{'GFLOP':>10}{'GB':>8}{'bound':>10}" + "".join(f"{way:>17}" for way in measured))
    times = dict(zip(map(id, convolutions), zip(*measured.values(), strict=True), strict=False))
    for layer in layers:
        columns = f"{layer.flops / 1e9:10.2f}{layer.bytes / 1e9:8.3f}{1e3 * layer.seconds(rates):10.3f}"
        columns += "".join(f"{ms:17.3f}" for ms in times.get(id(layer), ()))
        print(f"{layer.label:44}{len(layer.names):6}{columns}")
    for name, value in found.items():
        parts = value if isinstance(value, dict) else {"": value}
        print(f"{name:20} " + ", ".join(f"{part} {number:,.4g}".strip() for part, number in parts.items()))
    return found


def main() -> None:
    on_gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("trunks", nargs="*", metavar="TRUNK", default=["resnet50"])
    parser.add_argument("--crops", default="2x224+6x96" if on_gpu else "2x64+6x32", help="COUNTxSIZE, the large first")
    parser.add_argument("--batch", type=int, default=64 if on_gpu else 8)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--rates", nargs=2, type=float, metavar=("TFLOP/S", "TB/S"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    args.threads = 1
    torch.set_num_threads(1)
    device = None if args.rates else torch.device("cuda" if on_gpu else "cpu")
    if device is None:
        rates = Rates(1e12 * args.rates[0], 1e12 * args.rates[1])
    else:
        rates = Rates(matrix_peak(device), copy_rate(device))
    print(f"matrix product {rates.matrix / 1e12:.3g} TFLOP/s, copy {rates.copy / 1e12:.3g} TB/s")
    found = {trunk: measure(trunk, args, rates, device) for trunk in args.trunks}
    if args.json:
        args.json.write_text(json.dumps({"rates": rates._asdict(), "trunks": found}, indent=1))


if __name__ == "__main__":
    main()
