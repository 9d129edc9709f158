"""What the doctor says of a recipe before it is started."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

from seer_pipe import config as settings
from seer_pipe.cli import app
from seer_pipe.recipes import load_recipe, recipes
from seer_pipe.train.build import build_network
from seer_pipe.train.doctor import activations, at_hand, estimate_memory, examine, supposed, training_flops
from seer_pipe.train.loop import train
from tests.data.test_sources import exclude, payloads
from tests.test_shards import make_set
from tests.train.helpers import make_pictures, small


def published(name: str, *overrides: str) -> settings.Config:
    return load_recipe(Path(name), overrides)


def examined(config: settings.Config, images: int, gpus: int, gpu_memory: float | None = None) -> dict[str, Any]:
    return examine(config, supposed(config, images), gpus, gpu_memory)


@pytest.mark.slow
def test_published_recipes_look_right_at_their_published_size() -> None:
    for name, images, gpus, gpu_memory in (
        ("regnety_16gf", 1_281_167, 64, 32.0),
        ("seer_10b", 1_000_000_000, 496, 40.0),
        ("seer_regnety_256gf", 1_000_000_000, 512, 32.0),
    ):
        problems = examined(published(name), images, gpus, gpu_memory)["problems"]
        assert problems == []


@pytest.mark.parametrize("name", sorted(recipes()))
def test_a_shipped_recipe_passes(name: str) -> None:
    """On what it is made for, one process or 64 GPUs (the 10B 62), memory aside, and a set of the size meant."""
    images, gpus = {
        "imagenette": (9469, 1), "quickstart": (600, 1), "random": (240_000, 1), "seer": (1_000_000_000, 64),
    }.get(name.split("_")[0], (1_281_167, 64))  # fmt: skip
    gpus = 62 if name == "seer_10b" else gpus
    assert examined(published(name), images, gpus)["problems"] == []


def test_operations_are_those_of_the_crops() -> None:
    """RegNetY-16GF: 15.9 G multiply-adds at 224 pixels, 2x224 + 6x96 as 3.10 of them, thrice in training."""
    assert training_flops(published("regnety_16gf")) == pytest.approx(0.296e12, rel=0.02)
    assert training_flops(published("seer_10b")) == pytest.approx(19.6e12, rel=0.03)


@pytest.mark.slow
def test_weights_and_optimizer_are_counted_by_sharding() -> None:
    config = small("unused")
    parameters = sum(p.numel() for p in build_network(config).parameters())
    alone, four = estimate_memory(config, 1), estimate_memory(config, 4)
    assert alone["weights"] == alone["gradients"] == alone["optimizer"] == pytest.approx(4e-9 * parameters)
    assert four["weights"] == pytest.approx(1e-9 * parameters)
    adam = estimate_memory(small("unused", optimizer={"name": "adamw"}), 1)
    assert adam["optimizer"] == pytest.approx(2 * alone["optimizer"])
    assert estimate_memory(small("unused", train={"parallel": "ddp"}), 4)["weights"] == alone["weights"]


def test_under_fairscale_weights_wait_with_their_gradients() -> None:
    for recomputed, waiting in ((False, True), (True, False)):
        fsdp2, fairscale = (
            estimate_memory(small("unused", train={"parallel": way, "activation_checkpointing": recomputed}), 4)
            for way in ("fsdp2", "fairscale")
        )
        more = fairscale["gathered"] - fsdp2["gathered"]
        assert more == pytest.approx(fsdp2["gradients_not_yet_reduced"])
        assert bool(more) == waiting


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
        ({"train": {"parallel": "none"}}, 2, "train.parallel none: 2 processes need ddp or fsdp2"),
        ({"train": {"parallel": "fairscale", "shard_within": 2}}, 2, "fairscale shards over all ranks"),
        ({"data": {"path": "unused", "lanes": 8}}, 3, "data.lanes 8 and 3 GPUs"),
    ],
)
def test_what_looks_wrong_is_said(change: dict, gpus: int, told: str) -> None:
    config = small("unused", **change)
    assert any(told in problem for problem in examined(config, 1000, gpus)["problems"])


@pytest.mark.slow
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
    order = examined(config, 1_000_000, 2)["order"]
    assert order["correlation_of_any_two_batches_at_most"] == pytest.approx(1 / 32, rel=0.05)
    assert order["correlation_of_consecutive_batches"] < 0.001
    assert (order["images_a_chunk"], order["open_chunks"], order["store_images_a_request"]) == (128, 128, 31)
    assert order["store_memory_gb"] == pytest.approx(128 * 31 * 100e3 / 1e9)
    cached = small("unused", data={"path": "s3://unused", "cache": {"path": "/scratch", "gb": 10}})
    order = examined(cached, 1_000_000, 2)["order"]
    assert order["store_images_a_request"] == 128
    assert order["store_memory_gb"] < 0.07
    assert order["store_cache_gb"] == pytest.approx(128 * 128 * 100e3 / 1e9)


def mixed(tmp_path: Path, **data: Any) -> settings.Config:
    """A set of 600 images with three quarters of the batch, and one of 80 of which 20 are left out."""
    make_set(tmp_path / "a", [payloads("a", 600)])
    make_set(tmp_path / "b", [payloads("b", 80)])
    exclude(tmp_path / "b", list(range(20)))
    sources = [{"path": str(tmp_path / name), "weight": weight} for name, weight in (("a", 3), ("b", 1))]
    return small(tmp_path, data={"path": None, "sources": sources} | data, train={"images": None, "epochs": 2})


def test_each_of_several_sets_is_told(tmp_path: Path) -> None:
    config = mixed(tmp_path, window=4, cache={"path": "/scratch", "gb": 10})
    order, image_bytes = at_hand(config)
    result = examine(config, order, 2, image_bytes=image_bytes)
    assert result["derived"]["images_in_set"] == 660  # as the run has it: without those that are left out
    assert result["derived"]["batch_correlation"] == order.correlation[1]
    (path_a, a), (path_b, b) = result["sets"]
    assert (path_a, path_b) == (str(tmp_path / "a"), str(tmp_path / "b"))
    assert (a["images"], a["images_a_batch"], b["images"], b["images_a_batch"]) == (600, 6, 60, 2)
    assert (a["epochs"], b["epochs"]) == pytest.approx((164 * 6 / 600, 164 * 2 / 60))
    assert (a["images_a_chunk"], b["images_a_chunk"]) == (6, 1)
    assert (a["open_chunks"], b["open_chunks"]) == (12, 4)
    worst = "correlation_of_any_two_batches_at_most"
    assert b[worst] == 0 < a[worst]
    assert result["order"][worst] == pytest.approx((6 * a[worst] + 2 * b[worst]) / 8)
    assert result["order"]["store_cache_gb"] == pytest.approx((12 * 6 + 4 * 1) * image_bytes / 1e9)
    settings.save(config, settings.derive(config, 660), tmp_path / "recipe.yaml")
    said = CliRunner().invoke(app, ["doctor", str(tmp_path / "recipe.yaml")]).stdout
    assert f"\n{tmp_path / 'b'}\n  images: 60\n  images a batch: 2\n" in said


def test_sets_that_are_not_there_yet_are_as_large_as_their_weights(tmp_path: Path) -> None:
    config = mixed(tmp_path)
    (_, a), (_, b) = examined(config, 10_000, 1)["sets"]
    assert (a["images"], b["images"]) == (7500, 2500)
    assert a["epochs"] == b["epochs"] == pytest.approx(2)


def test_a_run_keeps_the_correlation_of_its_order(tmp_path: Path) -> None:
    make_pictures(tmp_path / "set", [64])
    config = small(
        tmp_path / "set", data={"path": str(tmp_path / "set"), "chunk": 4, "window": 1}, train={"images": 16}
    )
    train(config, tmp_path / "run", lambda _: None)
    kept = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["derived"]["batch_correlation"]
    assert kept == at_hand(config)[0].correlation[1] > 0
