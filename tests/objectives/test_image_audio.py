"""Pictures and their sounds: the loss pair by pair in float64, its metrics and signs, what a short training learns."""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from typer.testing import CliRunner

import seer_pipe
from seer_pipe import config as settings
from seer_pipe.cli import app
from seer_pipe.config import Sound
from seer_pipe.data.sound import spectrograms
from seer_pipe.errors import UserError
from seer_pipe.evaluate.pairs import evaluate_pairs, ranks
from seer_pipe.evaluate.sounds import evaluate_sounds
from seer_pipe.export import Preprocessing, export_backbone
from seer_pipe.models import build_trunk, multiply_adds
from seer_pipe.objectives.image_audio.objective import ImageAudio
from seer_pipe.objectives.image_audio.queued import QueuedImageAudio
from seer_pipe.objectives.image_audio.settings import ImageAudioSettings
from seer_pipe.objectives.momentum import MomentumOutput
from seer_pipe.objectives.pairs import Pair
from seer_pipe.objectives.settings import Setup
from seer_pipe.recipes import load_recipe
from seer_pipe.run import start
from seer_pipe.train.build import build_network
from seer_pipe.train.doctor import training_flops
from tests.objectives.embeddings import BATCH, found
from tests.objectives.moments import at
from tests.objectives.runs import quiet
from tests.objectives.tones import GATE, gate, gate_set

DIM, TEMPERATURE = 6, 0.3
SETTINGS = ImageAudioSettings(name="image_audio")


def drawn(rows: int) -> Tensor:
    return torch.randn(rows, DIM, dtype=torch.float64, generator=torch.Generator().manual_seed(rows))


def reference(seen: Tensor, heard: Tensor, crops: int) -> Tensor:
    """Each picture among all sounds, each sound among all pictures of one crop, one by one."""
    losses = []
    for crop in seen.view(crops, BATCH, DIM):
        cosines = torch.stack([torch.stack([F.cosine_similarity(v, a, dim=0) for a in heard]) for v in crop])
        for i in range(BATCH):
            for row in (cosines[i], cosines[:, i]):
                losses.append(-(row[i] / TEMPERATURE).exp().div((row / TEMPERATURE).exp().sum()).log())
    return torch.stack(losses).mean()


@pytest.mark.parametrize("crops", [1, 3])
def test_loss_and_gradient_are_the_definition(crops: int) -> None:
    seen, heard = drawn(crops * BATCH).requires_grad_(), drawn(BATCH).requires_grad_()
    loss, _ = ImageAudio(TEMPERATURE).loss(Pair(seen, heard), at(0))
    expected = reference(seen, heard, crops)
    torch.testing.assert_close(loss, expected, rtol=1e-12, atol=0)
    for one, other in zip(torch.autograd.grad(loss, (seen, heard)), torch.autograd.grad(expected, (seen, heard)),
                          strict=True):  # fmt: skip
        torch.testing.assert_close(one, other, rtol=1e-10, atol=1e-14)


def queued(**changes: Any) -> QueuedImageAudio:
    made = ImageAudioSettings(name="image_audio", **{"queue": 20, "temperature": TEMPERATURE, **changes})
    made = made.model_copy(update={"head": made.head.model_copy(update={"dim": DIM})})
    views = settings.Views(crops=[settings.Crop(count=2, size=16, scale=(0.3, 1.0))], sound=Sound())
    return QueuedImageAudio(made, Setup(views, 0, 100, torch.device("cpu"), BATCH))


@pytest.mark.parametrize(("crops", "positives"), [(1, 0), (3, 0), (1, 1), (3, 4)])
def test_with_a_queue_others_are_those_of_the_last_steps_as_the_copies_see_them(crops: int, positives: int) -> None:
    """With positives, those of the queue that agree in picture and sound are near, from the time on that it is full."""
    objective = queued(positives=positives)
    seen, heard = (list(objective.queue.rows[:, part].double()) for part in (0, 1))  # oldest first
    for step in range(6):  # the queue is filled and written over
        generator = torch.Generator().manual_seed(step)
        online, keys = (
            Pair(*(torch.randn(rows * BATCH, DIM, dtype=torch.float64, generator=generator) for rows in some))
            for some in ((crops, 1), (1, 1))
        )
        for leaf in online:
            leaf.requires_grad_()
        found, metrics = objective.loss(MomentumOutput(online, keys), at(step * BATCH), log=True)
        seen, heard = (
            [*rows, *F.normalize(new, dim=1)][-20:] for rows, new in ((seen, keys.seen), (heard, keys.heard))
        )
        v, a = (F.normalize(rows, dim=1) for rows in online)
        losses, agreement = [], []
        for i in range(BATCH):
            own = 20 - BATCH + i
            least = {j: min(float(seen[own] @ seen[j]), float(heard[own] @ heard[j])) for j in range(20) if j != own}
            near = sorted(least, key=lambda j: -least[j])[: positives if step * BATCH >= 20 else 0]
            far = [j for j in range(20) if j != own and j not in near]
            crops_of, sound = list(v[i::BATCH]), a[i]
            across = (mean(share(crop, heard, own, far) for crop in crops_of) + share(sound, seen, own, far)) / 2
            within = [
                (mean(share(crop, seen, j, far) for crop in crops_of) + share(sound, heard, j, far)) / 2 for j in near
            ]
            losses.append((across + mean(within)) / 2 if near else across)
            agreement += [least[j] for j in near]
        wanted = mean(losses)
        torch.testing.assert_close(found, wanted, rtol=1e-6, atol=0)  # the queue is kept in float32
        for one, other in zip(torch.autograd.grad(found, online), torch.autograd.grad(wanted, online), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-8)
        assert metrics["momentum"] == pytest.approx(0.99 ** (BATCH / 256))
        assert ("consensus" in metrics) == bool(agreement)
        if agreement:
            assert float(metrics["consensus"]) == pytest.approx(sum(agreement) / len(agreement), abs=1e-6)


def mean(values: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(values)).mean()


def share(asked: Tensor, rows: list[Tensor], own: int, far: list[int]) -> Tensor:
    """The cross entropy of one row among it and those that are far."""
    return -torch.log_softmax(torch.stack([asked @ rows[j] for j in (own, *far)]) / TEMPERATURE, 0)[0]


def test_a_short_queue_is_refused_and_one_of_the_whole_run_is_found() -> None:
    config = load_recipe(Path("image_audio_cpu"), ["objective.queue=512", "train.batch=16"])
    assert config.objective.problems(config, 64_000) == []
    assert "never all replaced" in config.objective.problems(config, 500)[0]
    with pytest.raises(UserError, match=r"objective\.queue 64 is less than the 128 samples of a step"):
        load_recipe(Path("image_audio_cpu"), ["objective.queue=64"])
    with pytest.raises(UserError, match=r"objective\.positives 5 are of an objective\.queue.* it is 0"):
        load_recipe(Path("image_audio_cpu"), ["objective.positives=5"])
    late = load_recipe(Path("image_audio_cpu"), [
        "objective.queue=512", "objective.positives=5", "objective.positives_after=9000"])  # fmt: skip
    assert "no positives are sought" in late.objective.problems(late, 9000)[0]
    assert late.objective.chance_loss(late.views, 128) == pytest.approx(math.log(507))


def test_copies_see_the_first_crop_and_the_sound() -> None:
    network = build_network(load_recipe(Path("image_audio_cpu"), ["objective.queue=512"]))
    crops = [torch.randn(4, *shape, generator=torch.Generator().manual_seed(0)) for shape in [(3, 64, 64)] * 2]
    sounds = torch.randn(4, 1, 100, 64, generator=torch.Generator().manual_seed(1))
    network.eval()
    with torch.no_grad():
        online, copied = network([*crops, sounds])
    torch.testing.assert_close(copied.seen, online.seen[:4])  # they begin equal
    torch.testing.assert_close(copied.heard, online.heard)
    assert online.seen.shape == (8, 64)


def of(seen: Tensor, heard: Tensor) -> dict[str, float]:
    _, metrics = ImageAudio(0.07).loss(Pair(seen, heard), at(0), log=True)
    return {name: float(value) for name, value in metrics.items()}


def test_metrics_and_signs_tell_learning_from_collapse() -> None:
    own = torch.eye(BATCH)
    learnt, collapsed = of(own, own), of(torch.ones(BATCH, DIM), torch.ones(BATCH, DIM))
    assert learnt["sound_found"] == learnt["picture_found"] == 1
    assert (learnt["positive_similarity"], learnt["negative_similarity"]) == pytest.approx((1, 0), abs=1e-6)
    assert collapsed["loss"] == pytest.approx(math.log(BATCH), rel=1e-5)  # chance
    assert not any(found(SETTINGS, learnt))
    assert all(found(SETTINGS, collapsed)[:2])
    shuffled = of(own, own.roll(1, 0))
    assert shuffled["sound_found"] == shuffled["picture_found"] == 0


def test_ranks_are_counted_from_the_nearest_and_equal_ones_find_nothing() -> None:
    keys = torch.eye(4)
    assert ranks(keys, keys, rows=3).tolist() == [1, 1, 1, 1]
    assert ranks(F.normalize(keys + 2 * keys.roll(1, 1), dim=1), keys).tolist() == [2, 2, 2, 2]
    assert ranks(torch.ones(4, 1), torch.ones(4, 1)).tolist() == [4, 4, 4, 4]


def test_sound_goes_with_objectives_that_hear_alone() -> None:
    tree: dict[str, Any] = {
        "name": "x", "data": {"path": "x"}, "views": {"crops": [{"count": 2, "size": 64, "scale": [0.3, 1]}]},
        "model": {"name": "resnet18"}, "objective": {"name": "image_audio"}, "optimizer": {}, "train": {"batch": 8},
    }  # fmt: skip
    with pytest.raises(UserError, match=r"objective image_audio needs views\.sound"):
        settings.parse(tree, "test")
    tree["views"]["sound"] = {"spectrum": "log_mel"}
    assert settings.parse(tree, "test").views.shapes == [(3, 64, 64)] * 2 + [(1, 200, 80)]
    with pytest.raises(UserError, match=r"objective simclr takes no views\.sound"):
        settings.parse(tree | {"objective": {"name": "simclr"}}, "test")


def test_the_audio_network_is_avids_and_any_trunk_takes_one_channel() -> None:
    trunk = build_trunk("conv2d_10", channels=1)
    convolutions = [layer for layer in trunk.modules() if isinstance(layer, torch.nn.Conv2d)]
    assert [layer.out_channels for layer in convolutions] == [64, 64, 64, 128, 128, 256, 256, 512, 512]
    assert trunk.feature_map(torch.zeros(2, *Sound().shape)).shape == (2, 512, 7, 9)
    spectrogram = torch.randn(2, *Sound().shape)
    assert torch.equal(trunk(spectrogram), trunk.feature_map(spectrogram).amax((2, 3)))
    for name in ("resnet18", "regnety_200mf"):
        other = build_trunk(name, channels=1)
        assert other(torch.zeros(2, 1, 50, 64)).shape == (2, other.width)


def test_both_trunks_are_counted() -> None:
    config = load_recipe(Path("image_audio_resnet18"))
    once = multiply_adds("resnet18", 224) + multiply_adds("conv2d_10", (1, 200, 257))
    assert training_flops(config) == pytest.approx(3 * 2 * once)


# ---- A gate


@pytest.mark.slow
@pytest.mark.learns
@pytest.mark.timeout(1200)
def test_pairs_of_colours_and_tones_are_found_and_shuffled_sounds_are_not(tmp_path: Path) -> None:
    """One sample of each kind, none of which was trained on: chance is 1 / 36."""
    assert start(gate(gate_set(tmp_path / "train", 24, seed=0)), tmp_path / "run", say=quiet)
    test, shuffled = gate_set(tmp_path / "test", 1, seed=1), gate_set(tmp_path / "shuffled", 1, seed=2, shuffled=True)
    learnt, chance = (evaluate_pairs(tmp_path / "run", str(data)) for data in (test, shuffled))
    assert learnt is not None
    assert chance is not None
    assert min(learnt["sound_at_1"], learnt["picture_at_1"]) > 0.95
    assert max(chance["sound_at_1"], chance["picture_at_1"]) < 0.15

    result = CliRunner().invoke(
        app, ["export", str(tmp_path / "run"), "--out", str(tmp_path / "full"), "--format", "full"]
    )
    assert result.exit_code == 0, result.output
    exported = evaluate_pairs(tmp_path / "full", str(test))
    assert exported == learnt
    grounds = [evaluate_sounds(tmp_path / name, str(test), "folder", k=3, temperature=0.07, seed=0, untrained=False)
               for name in ("run", "full")]  # fmt: skip
    assert grounds[0] == grounds[1]
    assert grounds[0] is not None
    assert min(grounds[0]["accuracy"], grounds[0]["accuracy_knn"]) > 0.9  # the ground's tone among six
    waves = torch.randn(2, GATE.rate // 5)
    one, other = (seer_pipe.load_sound_backbone(tmp_path / name)(spectrograms(waves, GATE)) for name in ("run", "full"))
    assert one.shape == (2, 512)
    assert torch.equal(one, other)


def test_what_hears_nothing_is_refused(tmp_path: Path) -> None:
    export_backbone(build_trunk("resnet18"), tmp_path / "deaf", images=torch.randn(2, 3, 32, 32), metadata={},
                    preprocessing=Preprocessing(32))  # fmt: skip
    with pytest.raises(UserError, match="hears nothing"):
        evaluate_pairs(tmp_path / "deaf", "unused")
    with pytest.raises(UserError, match="hears nothing"):
        seer_pipe.load_sound_backbone(tmp_path / "deaf")
