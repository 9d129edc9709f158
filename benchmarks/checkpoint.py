"""What a checkpoint costs, beside torch.save of the whole and plain torch.distributed.checkpoint.

    python benchmarks/checkpoint.py [--trunk regnety_1_6gf] [--ranks 2] [--saves 5] [--images 16] [--size 128]

Each way saves trunk and momentum from FSDP2 shards, and loads them again. Stall is how long training stands still, and
what of it the training's thread computes; save is until the checkpoint is on the disk, with nothing beside it. Prints
medians of the first rank, ours as a ratio to each, and a training step of so many images a rank: alone, and beside a
save of ours.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.multiprocessing import spawn

from seer_pipe.models import build_trunk
from seer_pipe.store import FolderStore
from seer_pipe.train.checkpoint import Checkpoints

WAYS = ("ours", "torch.save", "DCP")


def measure(rank: int, ranks: int, trunk: str, saves: int, images: int, size: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=ranks)
    network = build_trunk(trunk)
    mesh = init_device_mesh("cpu", (ranks,))
    for block in network.blocks():
        fully_shard(block, mesh=mesh)
    fully_shard(network, mesh=mesh)
    tensors = {f"network/{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"optimizer/{name}": torch.zeros_like(p) for name, p in network.named_parameters()}
    group = dist.new_group(backend="gloo")
    optimizer = torch.optim.SGD(network.parameters(), lr=0.0, momentum=0.9)
    crops = torch.randn(images, 3, size, size)

    def step() -> tuple[float, float]:
        began, busy = time.perf_counter(), time.process_time()
        network(crops).square().mean().backward()
        optimizer.step()
        optimizer.zero_grad()
        return time.perf_counter() - began, time.process_time() - busy

    rows: dict[str, list[list[float]]] = {name: [] for name in WAYS}
    steps: dict[str, list[tuple[float, float]]] = {"alone": [], "beside a save": []}
    step()  # makes what the first one makes
    for number in range(saves):
        for name, by in zip(WAYS, (by_ours, by_torch_save, by_dcp), strict=True):
            dist.barrier()
            place = Path(folder, f"{name}-{number}")
            rows[name].append([*by(place, tensors, network, group)])
            if rank == 0:
                rows[name][-1].append(sum(f.stat().st_size for f in place.rglob("*") if f.is_file()) / 1e6)
                shutil.rmtree(place)
        dist.barrier()
        steps["alone"].append(step())
        checkpoints = Checkpoints(FolderStore(Path(folder, "beside")), group)
        checkpoints.save(number, tensors, {})
        steps["beside a save"].append(step())
        checkpoints.wait()
    if rank == 0:
        middle = {name: [statistics.median(column) for column in zip(*of, strict=True)] for name, of in rows.items()}
        print(f"{f'{trunk}, {ranks} ranks, {saves} saves':30s}   stall s     CPU s    save s    load s        MB")
        for name, values in middle.items():
            print(f"{name:30s}" + "".join(f"{value:10.3f}" for value in values))
        for name in ("torch.save", "DCP"):
            ratios = (ours / other for ours, other in zip(middle["ours"], middle[name], strict=True))
            print(f"ours / {name:23s}" + "".join(f"{ratio:10.2f}" for ratio in ratios))
        for name, times in steps.items():
            wall, cpu = (statistics.median(column) for column in zip(*times, strict=True))
            print(f"a step of {images} images a rank, {name}: {wall:.2f} s, {cpu:.2f} s CPU")
    dist.destroy_process_group()


def by_ours(place: Path, tensors: dict[str, Any], _network: Any, group: Any) -> tuple[float, ...]:
    checkpoints = Checkpoints(FolderStore(place), group)
    began, busy = time.perf_counter(), time.thread_time()
    checkpoints.save(1, tensors, {})
    stall, cpu = time.perf_counter() - began, time.thread_time() - busy
    checkpoints.wait()
    saved = time.perf_counter()
    checkpoints.open(1).load(tensors, group)
    return stall, cpu, saved - began, time.perf_counter() - saved


def by_torch_save(place: Path, tensors: dict[str, Any], network: Any, _group: Any) -> tuple[float, ...]:
    """The whole model gathered on the first rank; the momentum too."""
    began, busy = time.perf_counter(), time.thread_time()
    whole = get_model_state_dict(network, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    momentum = {name: t.full_tensor() for name, t in tensors.items() if name.startswith("optimizer/")}
    place.mkdir(exist_ok=True)
    if dist.get_rank() == 0:
        with (place / "whole.pt").open("wb") as file:
            torch.save([whole, momentum], file)
            file.flush()
            os.fsync(file.fileno())
    dist.barrier()
    saved, cpu = time.perf_counter(), time.thread_time() - busy
    torch.load(place / "whole.pt", weights_only=True)
    dist.barrier()
    return saved - began, cpu, saved - began, time.perf_counter() - saved


def by_dcp(place: Path, tensors: dict[str, Any], _network: Any, group: Any) -> tuple[float, ...]:
    began, busy = time.perf_counter(), time.thread_time()
    dcp.save(tensors, checkpoint_id=place, process_group=group)
    saved, cpu = time.perf_counter(), time.thread_time() - busy
    dcp.load(tensors, checkpoint_id=place, process_group=group)
    return saved - began, cpu, saved - began, time.perf_counter() - saved


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trunk", default="regnety_1_6gf")
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--saves", type=int, default=5)
    parser.add_argument("--images", type=int, default=16)
    parser.add_argument("--size", type=int, default=128)
    asked = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        how = asked.ranks, asked.trunk, asked.saves, asked.images, asked.size, scratch
        spawn(measure, how, nprocs=asked.ranks)
