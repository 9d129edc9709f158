"""How BatchNorm lives beside bf16 under FSDP2: what each way moves, keeps, takes and loses, on CPU ranks.

    python benchmarks/precision.py [--trunk regnety_400mf] [--ranks 2] [--steps 5]

FSDP2's own cast (`param_dtype`) makes weights bf16 before they travel, but BatchNorm's statistics must stay float32.

    float32       nothing is cast; the reference
    autocast      weights travel as float32, each layer casts its own (what this project does)
    cast, BN whole    bf16 travels; BatchNorm's parameters are left out of the sharding, their gradients reduced by us
    cast, BN grouped  bf16 travels; a block's BatchNorms are a unit of their own, which is not cast

A step is forward and backward of the trunk at two crop sizes. MB sent counts whole tensors; MB kept is what autograd
holds for the backward; seconds are processor time of a rank (a CPU's bf16, not a GPU's); errors are relative to
float32 on the same images: of the features, and of the whole gradient.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor
from torch.multiprocessing import spawn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from seer_pipe.models import Trunk, build_trunk

WAYS = ("float32", "autocast", "cast, BN whole", "cast, BN grouped")
SIZES = ((8, 96), (8, 64))  # images and pixels of the two forwards


class Sent(TorchDispatchMode):
    """Collectives, and bytes of the whole tensors in them."""

    calls = bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace == "c10d":
            self.calls += 1
            self.bytes += max(leaf.nbytes for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
        return func(*args, **(kwargs or {}))


def norms_of(module: nn.Module) -> list[nn.Module]:
    return [layer for layer in module.modules() if isinstance(layer, _BatchNorm)]


def make(trunk: str, way: str, ranks: int) -> tuple[Trunk, list[nn.Parameter]]:
    """The trunk, sharded, and the parameters whose gradients FSDP2 does not reduce."""
    torch.manual_seed(0)
    network, mesh = build_trunk(trunk), init_device_mesh("cpu", (ranks,))
    bf16 = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    options: dict[str, Any] = {"mesh": mesh}
    if way.startswith("cast"):
        options["mp_policy"] = bf16
    apart = [p for layer in norms_of(network) for p in layer.parameters()] if way == "cast, BN whole" else []
    if apart:
        options["ignored_params"] = set(apart)
    for unit in [*network.blocks(), network]:
        if way == "cast, BN grouped":
            rest = [layer for layer in norms_of(unit) if not isinstance(next(layer.parameters()), DTensor)]
            fully_shard(rest, mesh=mesh, mp_policy=MixedPrecisionPolicy(cast_forward_inputs=False))
        fully_shard(unit, **options)
    return network, apart


def step(network: Trunk, apart: list[nn.Parameter], images: list[Tensor], way: str) -> Tensor:
    network.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=way == "autocast", cache_enabled=False):
        features = torch.cat([network(some) for some in images]).float()
    target = torch.randn(features.shape, generator=torch.Generator().manual_seed(1))
    (features - target).square().mean().backward()
    if apart:
        flat = torch.cat([p.grad.flatten() for p in apart if p.grad is not None])
        dist.all_reduce(flat)
        for p, grad in zip(apart, (flat / dist.get_world_size()).split([p.numel() for p in apart]), strict=True):
            p.grad = grad.view_as(p)
    return features.detach()


def measure(rank: int, ranks: int, trunk: str, steps: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    generator = torch.Generator().manual_seed(rank)
    coarse = [torch.randn(count, 3, 4, 4, generator=generator) for count, _ in SIZES]
    images = [F.interpolate(some, size=size, mode="bicubic") for some, (_, size) in zip(coarse, SIZES, strict=True)]
    reference: tuple[Tensor, Tensor] | None = None
    if rank == 0:
        print(f"{trunk}, {ranks} ranks{'':11} calls  MB sent  MB kept  seconds  features  gradient")
    for way in WAYS:
        network, apart = make(trunk, way, ranks)
        with Sent() as sent:
            features = step(network, apart, images, way)
        whole = [p.grad.full_tensor() if isinstance(p.grad, DTensor) else p.grad for p in network.parameters()]
        gradient = torch.cat([grad.flatten().float() for grad in whole])
        kept: dict[int, int] = {}

        def note(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
            step(network, apart, images, way)
        seconds = []
        for _ in range(steps):
            began = time.process_time()
            step(network, apart, images, way)
            seconds.append(time.process_time() - began)
        reference = reference or (features, gradient)
        errors = [((a - b).norm() / b.norm()).item() for a, b in zip((features, gradient), reference, strict=True)]
        if rank == 0:
            print(f"{way:32} {sent.calls:5} {sent.bytes / 1e6:8.1f} {sum(kept.values()) / 1e6:8.1f} "
                  f"{statistics.median(seconds):8.3f} {errors[0]:9.4f} {errors[1]:9.4f}")  # fmt: skip
    dist.destroy_process_group()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", default="regnety_400mf")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        spawn(measure, (asked.ranks, asked.trunk, asked.steps, scratch), nprocs=asked.ranks)
