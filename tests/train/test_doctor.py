"""What the doctor says of a recipe before it is started."""

import json
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from seer_pipe import config as settings
from seer_pipe.cli import app
from seer_pipe.recipes import load_recipe, recipes
from seer_pipe.train.build import build_network
from seer_pipe.train.doctor import activations, estimate_memory, examine, training_flops
from tests.train.helpers import small


def published(name: str, *overrides: str) -> settings.Config:
    return load_recipe(Path(name), overrides)


def test_published_recipes_look_right_at_their_published_size() -> None:
    for name, images, gpus, gpu_memory in (
        ("regnety_16gf", 1_281_167, 64, 32.0),
        ("seer_10b", 1_000_000_000, 496, 40.0),
        ("seer_regnety_256gf", 1_000_000_000, 512, 32.0),
    ):
        problems = examine(published(name), images, gpus, gpu_memory)["problems"]
        assert problems == []


@pytest.mark.parametrize("name", sorted(recipes()))
def test_a_shipped_recipe_passes(name: str) -> None:
    """On what it is made for, one process or 64 GPUs (the 10B 62), memory aside, and a set of the size meant."""
    images, gpus = {"imagenette": (9469, 1), "quickstart": (600, 1), "seer": (1_000_000_000, 64)}.get(
        name.split("_")[0], (1_281_167, 64)
    )
    gpus = 62 if name == "seer_10b" else gpus
    assert examine(published(name), images, gpus)["problems"] == []


def test_operations_are_those_of_the_crops() -> None:
    """RegNetY-16GF: 15.9 G multiply-adds at 224 pixels, 2x224 + 6x96 as 3.10 of them, thrice in training."""
    assert training_flops(published("regnety_16gf")) == pytest.approx(0.296e12, rel=0.02)
    assert training_flops(published("seer_10b")) == pytest.approx(19.6e12, rel=0.03)


def test_weights_and_optimizer_are_counted_by_sharding() -> None:
    config = small("unused")
    parameters = sum(p.numel() for p in build_network(config).parameters())
    alone, four = estimate_memory(config, 1), estimate_memory(config, 4)
    assert alone["weights"] == alone["gradients"] == alone["optimizer"] == pytest.approx(4e-9 * parameters)
    assert four["weights"] == pytest.approx(1e-9 * parameters)
    adam = estimate_memory(small("unused", optimizer={"name": "adamw"}), 1)
    assert adam["optimizer"] == pytest.approx(2 * alone["optimizer"])
    assert estimate_memory(small("unused", train={"parallel": "ddp"}), 4)["weights"] == alone["weights"]


def test_activations_are_near_what_autograd_keeps() -> None:
    config = small("unused", model={"name": "regnety_200mf", "stem": "imagenet"},
                   views={"crops": [{"count": 2, "size": 64, "scale": [0.3, 1]}]})  # fmt: skip
    network = build_network(config).train()
    weights = {p.untyped_storage().data_ptr() for p in network.parameters()}
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.untyped_storage().data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        outputs = network([torch.randn(8, 3, 64, 64) for _ in range(2)])
    assert outputs.scores.requires_grad
    assert activations(config) * 8 * 4 == pytest.approx(sum(kept.values()), rel=0.3)
    checkpointed = small("unused", model={"name": "regnety_200mf", "stem": "imagenet"},
                         views={"crops": [{"count": 2, "size": 64, "scale": [0.3, 1]}]},
                         train={"activation_checkpointing": True})  # fmt: skip
    assert activations(checkpointed) < 0.7 * activations(config)


@pytest.mark.parametrize(
    ("change", "gpus", "told"),
    [
        ({}, 3, "train.batch 8 is not divisible by 3 GPUs: choose 6"),
        ({}, 8, "leaves one image to each of 8 GPUs"),
        ({"train": {"accumulate": 3}}, 2, "train.accumulate 3 does not divide the 4 images"),
        ({"optimizer": {"lr": 30.0}}, 1, "optimizer.lr 30.0 is far from the published 0.3"),
        ({"optimizer": {"warmup_images": 10_000}}, 1, "the warm-up (1250 steps) is not over"),
        ({"objective": {"freeze_images": 10_000}}, 1, "the prototypes never move"),
        ({"data": {"path": "unused", "window": 4}}, 1, "correlate by up to 0.17; take 20, or shuffle"),
        ({"train": {"sync_bn": {"images": 3}}}, 2, "train.sync_bn {images: 3}: 2 ranks that normalise 4 images each"),
        ({"data": {"path": "unused", "lanes": 8}}, 3, "data.lanes 8 and 3 GPUs"),
    ],
)
def test_what_looks_wrong_is_said(change: dict, gpus: int, told: str) -> None:
    config = small("unused", **change)
    assert any(told in problem for problem in examine(config, 1000, gpus)["problems"])


def test_the_verb_prints_and_needs_no_data() -> None:
    recipe, run = "regnety_16gf", CliRunner().invoke
    told = run(app, ["doctor", recipe, "--images", "1281167", "--gpus", "64", "--gpu-memory", "80", "--json"])
    assert told.exit_code == 0
    result = json.loads(told.stdout)
    assert result["derived"]["peak_lr"] == pytest.approx(4.8)
    assert result["problems"] == []
    small_gpu = run(app, ["doctor", recipe, "--images", "1281167", "--gpus", "8", "--gpu-memory", "2"])
    assert small_gpu.exit_code == 1
    assert "more than 2: set train.activation_checkpointing" in small_gpu.stdout


def test_what_the_order_leaves_and_takes_is_said() -> None:
    """A store costs a piece of each open chunk in memory; a cache, the whole of each on the disk."""
    config = small("unused", data={"path": "s3://unused", "memory_gb": 0.5})
    order = examine(config, 1_000_000, 2)["order"]
    assert order["correlation_of_any_two_batches_at_most"] == pytest.approx(1 / 32, rel=0.05)
    assert order["correlation_of_consecutive_batches"] < 0.001
    assert (order["images_a_chunk"], order["open_chunks"], order["store_images_a_request"]) == (128, 128, 31)
    assert order["store_memory_gb"] == pytest.approx(128 * 31 * 100e3 / 1e9)
    cached = small("unused", data={"path": "s3://unused", "cache": {"path": "/scratch", "gb": 10}})
    order = examine(cached, 1_000_000, 2)["order"]
    assert order["store_images_a_request"] == 128
    assert order["store_memory_gb"] < 0.07
    assert order["store_cache_gb"] == pytest.approx(128 * 128 * 100e3 / 1e9)
