"""What a run will need, and what looks wrong with it, before anything is paid for. Nothing is trained or allocated."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import torch
from torch import nn

from seer_pipe import config as settings
from seer_pipe.data.pieces import piece_size
from seer_pipe.data.sources import Known, Mix, Order, apportion, open_data, order_of
from seer_pipe.errors import UserError
from seer_pipe.models import Trunk, multiply_adds
from seer_pipe.models.init import NORMS
from seer_pipe.train.build import checkpointed
from seer_pipe.train.engines import ENGINES, engine_of
from seer_pipe.train.traffic import IMAGES, Outlined, outlined, resolutions, shard_ranks, traffic

GB = 1e9
#: Effective teraFLOP/s of a large GPU that the loader must keep up with: an upper bound for convolutions.
FAST_GPU = 300.0
#: Bytes that a step keeps of each output of a convolution or norm, beside the output itself: masks, gates.
KEPT_BESIDE = 0.25
IMAGE_BYTES = 100e3  # of a web image, where the set is not at hand
ALIKE = 0.05  # correlation of two batches of a sorted set that is too much
PUBLISHED_LR = 0.3  # of LARC, for each 256 images


def examine(
    config: settings.Config, order: Order, gpus: int, gpu_memory: float | None = None, image_bytes: float = IMAGE_BYTES
) -> dict[str, Any]:
    """What follows from a recipe for the sets that ``order`` is of, on so many GPUs.

    Returns ``derived`` (see `settings.Derived`), ``memory`` a GPU in GB by part, ``host``, GB that the objective keeps
    in the memory of a GPU's process, ``sent``, GB that a GPU sends in a step by collective, ``loader`` (images per
    second and GPU if it did 300 teraFLOP/s, and in all), ``order`` (see `mixing`, for images of ``image_bytes`` each),
    ``sets`` (see `each_set`), and ``problems``: sentences.
    """
    derived = settings.derive(config, order.total, gpus, correlation=order.correlation[1])
    meta = outlined(config)
    memory = estimate_memory(config, gpus, meta=meta, samples=order.samples)
    flops = training_flops(config, meta)
    rate = FAST_GPU * 1e12 / flops
    found, sent = problems(config, derived, gpus, memory["total"], gpu_memory), []
    try:
        sent = traffic(config, gpus, meta)
    except UserError as error:
        found.append(str(error))
    return {
        "derived": asdict(derived),
        "memory": memory,
        "host": {"kept_of_samples": config.objective.kept_on_host(order.samples, gpus) / GB},
        "sent": {f"{some.kind} of {some.part}": some.sent / GB for some in sent},
        "loader": {"teraflop_per_image": flops / 1e12, "images_per_s_and_gpu": rate, "images_per_s": rate * gpus},
        "order": mixing(config, order, gpus, image_bytes),
        "sets": each_set(config, order, derived.steps, gpus),
        "problems": found,
    }


def at_hand(config: settings.Config) -> tuple[Order, float]:
    """The order of the recipe's shard sets, and the mean of their images' bytes."""
    shards, order = open_data(config.data, config.train.batch, config.seed, config.views.media)
    return order, float(shards.bytes.sum()) / max(1, len(shards))


def supposed(config: settings.Config, images: int) -> Order:
    """The order of so many images: one set, or several as large as their weights, so that all take as long."""
    sources = config.data.sources
    sizes = [images] if sources is None else apportion([source.weight for source in sources], images)
    return order_of(config.data, config.train.batch, config.seed, [Known([size]) for size in sizes])


def mixing(config: settings.Config, order: Order, gpus: int, image_bytes: float) -> dict[str, float]:
    """What remains of the order of a sorted set (see `Plan.correlation`), and what that takes of a GPU's process.

    A folder costs no memory. From a store, a piece of each open chunk is held in data.memory_gb; with data.cache the
    open chunks of all processes of a node lie in the cache.
    """
    data = config.data
    following, most = order.correlation
    tracks = max(1, order.lanes // gpus) * order.window
    piece = piece_size(order.chunk, tracks, image_bytes, data.memory_gb * GB, cached=data.cache is not None)
    plans = order.plans if isinstance(order, Mix) else [order]
    mean_chunk = sum(plan.lanes * plan.chunk for plan in plans) / order.lanes
    return {
        "correlation_of_consecutive_batches": following,
        "correlation_of_any_two_batches_at_most": most,
        "images_a_chunk": order.chunk,
        "open_chunks": tracks,
        "store_images_a_request": order.chunk if data.cache is not None else piece,
        "store_memory_gb": tracks * piece * image_bytes / GB if piece > 1 else 0.0,
        "store_cache_gb": tracks * mean_chunk * image_bytes / GB,
    }


def each_set(config: settings.Config, order: Order, steps: int, gpus: int) -> list[tuple[str, dict[str, float]]]:
    """Of each of several sets: its path; its share of the batch, how often the run sees it, what its order leaves."""
    plans = order.plans if isinstance(order, Mix) else []
    return [
        (path, {
            "images": plan.total,
            "images_a_batch": plan.batch,
            "epochs": steps * plan.batch / plan.total,
            "correlation_of_any_two_batches_at_most": plan.correlation[1],
            "images_a_chunk": plan.chunk,
            "open_chunks": -(-plan.lanes // gpus) * plan.window,
        })
        for path, plan in zip(config.data.paths if plans else [], plans, strict=True)
    ]  # fmt: skip


def training_flops(config: settings.Config, meta: Outlined | None = None) -> float:
    """Floating-point operations of a training step an image, without what is computed again: thrice the forward's
    for each crop that the trained trunk sees, and once for each that a momentum copy sees."""
    total = 0.0
    for module, its in (meta or outlined(config)).runs.items():
        if isinstance(module, Trunk):
            for (rows, *image), gradient in its:
                once = 2 * rows / IMAGES * multiply_adds(module.name, tuple(image), stem=module.stem_kind)
                total += 3 * once if gradient else once
    return total


def estimate_memory(
    config: settings.Config, gpus: int, half: bool = True, meta: Outlined | None = None, samples: int = 0
) -> dict[str, float]:
    """GB a GPU takes, by part; ``half``: activations in 16 bits, as on a GPU.

    Weights, gradients and momentum (two moments for AdamW) are float32, sharded if the engine does that; guard is the
    copy of weights and moments that a bad step of SGD or AdamW is taken back to; gathered is the largest block, whole,
    twice (the next is fetched meanwhile). Whole gradients of blocks that are not recomputed wait for the last of
    several resolutions (see `parallel.recompute`), and some engines' whole weights with them. The objective may keep
    something of each of ``samples``, the images of the set. Activations are the outputs of all convolutions, linear
    layers and norms, as the layers of the meta network have them.
    """
    meta = meta or outlined(config)
    network, trunk = meta.network, meta.network.trunk
    parameters = sum(parameter.numel() for parameter in network.parameters())
    trained = sum(parameter.numel() for parameter in network.parameters() if parameter.requires_grad)
    engine = ENGINES[engine_of(config.train.parallel, gpus)]
    sharded = gpus > 1 and engine.sharded
    share = shard_ranks(config, gpus) if sharded else 1
    recomputed = checkpointed(trunk, config.train.activation_checkpointing)
    late = [block for block in trunk.blocks() if block not in recomputed] if sharded and resolutions(config) > 1 else []
    largest = max(sum(p.numel() for p in unit.parameters()) for unit in network.units())
    images = config.train.batch / gpus / config.train.accumulate  # at a time
    width = 2 if half and config.train.precision != "fp32" else 4
    kept = images * width * activations(config, meta)
    moments = 2 if config.optimizer.name == "adamw" else 1
    waiting = 4.0 * sum(p.numel() for block in late for p in block.parameters())
    parts = {
        "weights": 4 * parameters / share,
        "gradients": 4 * trained / share,
        "gradients_not_yet_reduced": waiting,
        "optimizer": 4 * moments * trained / share,
        "guard": 0.0 if config.optimizer.name in ("larc", "lars") else 4 * (1 + moments) * trained / share,
        "gathered": (2 * (4 + width) * largest if sharded else 0.0) + (waiting if engine.weights_wait else 0.0),
        "activations": kept,
        # of all pieces: the loss sees the whole batch
        "objective": config.objective.memory(config.views, config.train.batch, gpus),
        "kept_of_samples": config.objective.kept(samples, gpus),
    }
    return {name: size / GB for name, size in parts.items()} | {"total": sum(parts.values()) / GB}


def activations(config: settings.Config, meta: Outlined | None = None) -> float:
    """Numbers that the backward pass keeps of one image, over all of its crops."""
    network, runs = meta or outlined(config)
    chosen = set(checkpointed(network.trunk, config.train.activation_checkpointing))
    total = 0.0
    inside = {layer: block for block in network.trunk.blocks() for layer in block.modules()}
    recomputed: dict[nn.Module, float] = {}

    def note(layer: nn.Module, inputs: Any, output: Any) -> None:
        nonlocal total
        if layer in chosen:
            total += inputs[0].numel()
        elif inside.get(layer) in chosen:
            block = inside[layer]
            recomputed[block] = recomputed.get(block, 0.0) + (1 + KEPT_BESIDE) * output.numel()
        else:
            total += (1 + KEPT_BESIDE) * output.numel()

    leaves = (nn.Conv2d, nn.Conv3d, nn.Linear, *NORMS)
    hooks = [
        layer.register_forward_hook(note) for layer in network.modules() if isinstance(layer, leaves) or layer in chosen
    ]
    peak = 0.0
    trained = [(module, call.shape) for module, its in runs.items() for call in its if call.gradient]
    for trunk, (rows, *image) in [(module, shape) for module, shape in trained if isinstance(module, Trunk)]:
        trunk.eval()(torch.empty(rows // IMAGES, *image, device="meta"))
        peak = max([peak, *recomputed.values()])
        recomputed.clear()
    for hook in hooks:
        hook.remove()
    return total + peak  # one block at a time is whole while it is computed again


def problems(
    config: settings.Config, derived: settings.Derived, gpus: int, needed: float, gpu_memory: float | None
) -> list[str]:
    """What looks wrong, a sentence each; empty where nothing does."""
    batch, found = config.train.batch, []
    if batch % gpus:
        found.append(f"train.batch {batch} is not divisible by {gpus} GPUs: choose {batch // gpus * gpus or gpus}")
    elif derived.images_per_rank < 2:
        found.append(f"train.batch {batch} leaves one image to each of {gpus} GPUs: BatchNorm needs two")
    elif derived.images_per_rank % config.train.accumulate:
        found.append(f"train.accumulate {config.train.accumulate} does not divide the {derived.images_per_rank} images "
                     "of a GPU")  # fmt: skip
    lanes = config.data.lanes or batch
    if lanes % gpus and gpus % lanes:
        found.append(f"data.lanes {lanes} and {gpus} GPUs: neither divides the other, so GPUs read unevenly")
    remaining = derived.batch_correlation
    if remaining is not None and remaining > ALIKE:
        found.append(f"data.window {config.data.window}: on a sorted set, batches correlate by up to {remaining:.2f}; "
                     f"take {round(batch / lanes / ALIKE)}, or shuffle the set: seer-ingest --shuffle")  # fmt: skip
    if config.optimizer.name == "larc" and not PUBLISHED_LR / 4 <= config.optimizer.lr <= PUBLISHED_LR * 4:
        found.append(f"optimizer.lr {config.optimizer.lr} is far from the published {PUBLISHED_LR} for 256 images")
    if derived.warmup_steps >= derived.steps:
        found.append(f"optimizer.warmup_images: the warm-up ({derived.warmup_steps} steps) is not over when the run is "
                     f"({derived.steps})")  # fmt: skip
    found += config.objective.problems(config, derived.images)
    if gpu_memory is not None and needed > gpu_memory:
        found.append(f"about {needed:.1f} GB a GPU are needed, more than {gpu_memory:g}: set "
                     "train.activation_checkpointing or train.accumulate, or take more GPUs")  # fmt: skip
    return found
