"""Features of the stages: what they are, and which one is the best."""

from pathlib import Path

import pytest
import torch
from torch import nn

from seer_pipe.errors import UserError
from seer_pipe.evaluate import classifiers, stages
from seer_pipe.evaluate.knn import evaluate_knn
from seer_pipe.evaluate.linear import evaluate_linear, evaluate_lowshot
from seer_pipe.evaluate.results import kept
from seer_pipe.evaluate.retrieval import evaluate_retrieval
from seer_pipe.evaluate.stages import Reader, readings
from seer_pipe.evaluate.transfer import evaluate_transfer
from seer_pipe.export import Preprocessing, export_backbone, recalibrate_batch_norm
from seer_pipe.models import build_trunk

HOW = {"seed": 0, "untrained": False}


@pytest.mark.parametrize("name", ["regnety_200mf", "resnet18", "resnext50_32x4d"])
def test_a_stage_is_its_last_blocks_output(name: str) -> None:
    """The blocks one after the other, without the trunk's own forward."""
    trunk = build_trunk(name).eval()
    images = torch.randn(2, 3, 64, 64)
    x = trunk.stem(images) if hasattr(trunk, "stem") else trunk.maxpool(trunk.relu(trunk.bn1(trunk.conv1(images))))
    blocks = iter(trunk.blocks())
    maps = trunk.stage_maps(images)
    assert len(maps) == len(trunk.stages) == 4
    for found, (channels, depth) in zip(maps, trunk.stages, strict=True):
        for _ in range(depth):
            x = next(blocks)(x)
        assert torch.equal(found, x)
        assert found.shape[1] == channels
    assert not any(block._forward_hooks for block in trunk.blocks())
    assert torch.equal(Reader(trunk, readings(trunk, 64, None, grid=True))(images), trunk(images))


def test_a_grid_has_about_as_many_numbers_at_every_stage() -> None:
    trunk = build_trunk("resnet50")
    assert [(r.side, r.width) for r in readings(trunk, 224, "all", grid=True)] == [
        (6, 9216), (4, 8192), (3, 9216), (2, 8192)]  # fmt: skip
    assert [r.side for r in readings(build_trunk("resnet18"), 32, "all", grid=True)] == [8, 4, 2, 1]  # never finer
    assert [(r.stage, r.side) for r in readings(trunk, 224, "3", grid=False)] == [(3, 1)]
    reader = Reader(trunk.eval(), readings(trunk, 64, "all", grid=True))
    images = torch.randn(2, 3, 64, 64)
    parts = reader.split(reader(images))
    side = reader.readings[1].side
    assert torch.equal(parts[1], nn.functional.adaptive_avg_pool2d(trunk.stage_maps(images)[1], side).flatten(1))
    for wrong in ("0", "5", "last"):
        with pytest.raises(UserError, match=rf"--stage {wrong}: resnet50 has the stages 1 to 4"):
            readings(trunk, 224, wrong, grid=True)


@pytest.fixture(scope="module")
def spoilt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trunk whose last stage says the same of every image."""
    torch.manual_seed(0)
    trunk = build_trunk("resnet18")
    recalibrate_batch_norm(trunk, torch.randn(4, 16, 3, 32, 32))
    for layer in trunk.layer4.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.weight.data.zero_()
            layer.bias.data.fill_(1)
    out = tmp_path_factory.mktemp("spoilt") / "out"
    export_backbone(trunk, out, images=torch.randn(2, 3, 32, 32), metadata={}, preprocessing=Preprocessing(size=32))
    return out


def test_the_best_stage_may_be_an_earlier_one(spoilt: Path, folder: Path, monkeypatch) -> None:
    monkeypatch.setattr(stages, "NUMBERS", 1024)  # 28 classifiers at four stages would take their time
    monkeypatch.setattr(classifiers, "GRID", classifiers.GRID[8:16:4])
    monkeypatch.setattr(classifiers, "LEAST_STEPS", 200)
    knn = evaluate_knn(spoilt, str(folder), None, None, k=3, temperature=0.07, untrained=False, stage="all")
    assert knn["best_stage"] < 4
    assert knn["stages"]["3"]["accuracy"] > 0.9 > knn["stages"]["4"]["accuracy"]
    linear = evaluate_linear(spoilt, str(folder), None, None, **HOW, stage="all")
    assert linear["best_stage"] < 4
    assert linear["stages"]["3"]["pooling"] == "2x2"
    assert linear["stages"]["3"]["protocol"] == "quick"
    alone = evaluate_linear(spoilt, str(folder), None, None, **HOW, stage="3")
    assert alone == linear["stages"]["3"]
    assert kept(spoilt)["linear-stage3-0"] == alone
    assert {f"knn-stage{n}-0" for n in range(1, 5)} <= set(kept(spoilt))


@pytest.mark.slow
def test_every_verb_takes_a_stage(spoilt: Path, folder: Path, shards: Path, tmp_path: Path) -> None:
    last = evaluate_retrieval(spoilt, str(shards), untrained=False)
    assert (last["stage"], last["pooling"], last["features"]) == (4, "1x1", 512)
    assert evaluate_retrieval(spoilt, str(shards), untrained=False, stage="2")["features"] == 128
    few = evaluate_lowshot(spoilt, str(folder), None, None, shares=[0.5], draws=1, **HOW, stage="3")
    assert (few["stage"], few["features"]) == (3, 1024)
    (tmp_path / "sets.yaml").write_text(f"- {{name: a, data: {folder}}}\n")
    table = evaluate_transfer(spoilt, tmp_path / "sets.yaml", **HOW, stage="3")
    assert table["stage"] == 3
    knn = evaluate_transfer(spoilt, tmp_path / "sets.yaml", **HOW)["sets"]["a"]["knn"]
    assert table["sets"]["a"]["knn"] > knn
    with pytest.raises(UserError, match="--stage all: transfer compares the data sets at one stage"):
        evaluate_transfer(spoilt, tmp_path / "sets.yaml", **HOW, stage="all")
