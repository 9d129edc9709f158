"""The published linear protocol: against plain torch, and stopped and resumed."""

import shutil
import signal
import subprocess
import sys
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from seer_pipe.distributed.world import World
from seer_pipe.evaluate import progress
from seer_pipe.evaluate.features import Images
from seer_pipe.evaluate.labels import open_labelled
from seer_pipe.evaluate.published import evaluate_published
from seer_pipe.evaluate.results import kept
from seer_pipe.evaluate.training import Recipe, batches, classifier
from seer_pipe.export import load_backbone
from tests.distributed import run_ranks

RECIPE = Recipe(size=32, epochs=8, batch=8, lr=0.3)


def evaluate(backbone: Path, folder: Path, recipe: Recipe = RECIPE, **how: Any) -> Any:
    return evaluate_published(backbone, str(folder), None, str(folder), recipe, untrained=False, **how)


def test_it_is_what_plain_torch_does_by_the_published_recipe(backbone: Path, folder: Path) -> None:
    said: list[str] = []
    result = evaluate(backbone, folder, say=said.append)
    trunk, learnt = load_backbone(backbone).eval(), open_labelled(str(folder))
    head = classifier(trunk.width, 2, 0)
    optimizer = torch.optim.SGD(head.parameters(), lr=0.3 * 8 / 256, momentum=0.9, weight_decay=1e-6)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8)
    losses = []
    with closing(Images(learnt.pictures, 32, batch=8)) as images:
        for step, (numbers, pixels) in enumerate(
            batches(images, learnt, RECIPE, range(24), 8, World(0, 1, torch.device("cpu")))
        ):
            loss = nn.functional.cross_entropy(head(trunk(pixels).detach()), torch.from_numpy(learnt.label_of)[numbers])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses.append(loss.item())
            if step % 3 == 2:
                cosine.step()
    assert result["training_loss"] == pytest.approx(sum(losses[-3:]) / 3, rel=1e-5)
    assert said[-1] == f"epoch 8 of 8: loss {result['training_loss']:.4f} (guessing: 0.6931)"  # ln 2
    assert (result["protocol"], result["steps"], result["stage"], result["pooling"]) == ("published", 24, 4, "1x1")
    assert kept(backbone)["linear-published-7"] == result
    assert not list((backbone / "evaluation" / "unfinished").iterdir())


def test_the_stages_are_trained_side_by_side_each_as_if_it_were_alone(backbone: Path, folder: Path) -> None:
    table = evaluate(backbone, folder, stage="all")
    alone = evaluate(backbone, folder, stage="2")
    assert alone["training_loss"] == pytest.approx(table["stages"]["2"]["training_loss"], rel=1e-5)
    assert alone["accuracy"] == table["stages"]["2"]["accuracy"]
    assert alone["pooling"] == "4x4"
    assert table["stages"][str(table["best_stage"])]["accuracy"] == max(s["accuracy"] for s in table["stages"].values())


def test_what_was_stopped_continues_bit_for_bit(backbone: Path, folder: Path, tmp_path: Path, monkeypatch) -> None:
    """Stopped twice behind a state that is kept, with an image that cannot be used, and once more on two ranks."""
    copy, data = shutil.copytree(backbone, tmp_path / "export"), shutil.copytree(folder, tmp_path / "data")
    (data / "red" / "broken.jpg").write_bytes(b"nothing")
    straight = evaluate(copy, data, stage="3")
    assert straight["left_out"]["unreadable"] == 2  # among those learnt from, and those tested on
    monkeypatch.setattr(progress, "EVERY", 0)
    said: list[str] = []

    def stop(line: str) -> None:
        said.append(line)
        if line.startswith(("epoch 3 ", "epoch 6 ")) and line[:7] not in before:
            raise KeyboardInterrupt

    for _ in range(2):
        before = [line[:7] for line in said]
        with pytest.raises(KeyboardInterrupt):
            evaluate(copy, data, stage="3", say=stop)
    before = [line[:7] for line in said]
    resumed = evaluate(copy, data, stage="3", say=said.append)
    assert [line for line in said if "resumed" in line] == [
        "resumed: 7 steps are finished",
        "resumed: 16 steps are finished",
    ]
    assert resumed == straight


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_it_survives_a_kill(backbone: Path, folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(backbone, tmp_path / "export")
    code = (
        "import sys; from pathlib import Path; from seer_pipe.evaluate import progress; progress.EVERY = 0\n"
        "from tests.evaluate.test_published import evaluate, RECIPE\n"
        f"evaluate(Path({str(copy)!r}), Path({str(folder)!r}), say=lambda line: print(line, flush=True))"
    )
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as process:
        for _line in process.stdout:
            if list(copy.glob("evaluation/unfinished/*/step-*/COMMITTED.json")):
                break
        process.send_signal(signal.SIGKILL)
    said: list[str] = []
    resumed = evaluate(copy, folder, say=said.append)
    assert any(line.startswith("resumed: ") for line in said)
    assert resumed == evaluate(backbone, folder)


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_two_ranks_learn_what_one_does(backbone: Path, folder: Path, tmp_path: Path) -> None:
    alone = evaluate(backbone, folder)
    first, second = run_ranks(2, evaluate, shutil.copytree(backbone, tmp_path / "export"), folder)
    assert second is None
    assert first["training_loss"] == pytest.approx(alone["training_loss"], rel=1e-4)
    assert first["steps"] == alone["steps"]
