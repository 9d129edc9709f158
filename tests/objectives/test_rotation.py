"""Rotation: loss and gradient against their definition, and what gives a turn away besides the picture's content."""

import io
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter, ImageOps
from torch import Tensor

from seer_pipe.config import Augment, Views
from seer_pipe.data.layouts import TURNS, labels
from seer_pipe.data.loader import Loader
from seer_pipe.data.order import Plan, slots_of
from seer_pipe.data.views import CropSpec, draw
from seer_pipe.errors import UserError
from seer_pipe.objectives.base import Moment
from seer_pipe.objectives.rotation.objective import Rotation
from seer_pipe.objectives.rotation.settings import RotationSettings
from seer_pipe.shards import ShardSet, ShardWriter, write_manifest
from seer_pipe.store import open_store
from tests.train.helpers import small

IMAGES, SIZE, WIDTH, HEIGHT = 128, 32, 160, 100


def test_loss_and_gradient_are_those_of_the_definition() -> None:
    rows = TURNS * 2 * 3  # two crops of three images
    logits = torch.randn(rows, TURNS, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    spec, three = CropSpec(2, SIZE, (0.3, 1.0), layout="quarter_turns"), np.full(3, SIZE)
    turns = labels(draw(0, 0, three, three, three, [spec]), [spec])
    loss, metrics = Rotation().loss(logits, Moment(0, 100, labels=turns), log=True)
    loss.backward()
    z, t = logits.detach().numpy(), np.repeat([0, 1, 2, 3, 0, 1, 2, 3], 3)
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    own = p[np.arange(rows), t]
    assert loss.item() == pytest.approx(-np.log(own).mean(), rel=1e-12)
    assert np.allclose(logits.grad.numpy(), (p - np.eye(TURNS)[t]) / rows, rtol=1e-10, atol=1e-14)
    assert float(metrics["pretext_accuracy"]) == pytest.approx((z.argmax(1) == t).mean())
    assert metrics["loss"].item() == loss.item()


def test_signs_name_a_shortcut_and_uniform_guesses() -> None:
    settings = RotationSettings(name="rotation")

    def advice(loss: float, accuracy: float) -> list[str]:
        values = {"loss": loss, "pretext_accuracy": accuracy}
        verdicts = [(sign, sign.judge(values)) for sign in settings.signs()]
        return [sign.advice for sign, verdict in verdicts if verdict is not None and not verdict[0]]

    assert advice(0.3, 0.9) == []
    (shortcut,) = advice(0.02, 0.99)
    assert "views.augment.ratio: [1, 1]" in shortcut
    (uniform,) = advice(math.log(4), 0.25)
    assert "optimizer.lr" in uniform


def test_a_group_of_crops_that_is_not_turned_is_refused() -> None:
    turned = {"count": 1, "size": 16, "scale": [0.3, 1], "layout": "quarter_turns"}
    crops = [turned, turned | {"layout": "independent"}]
    with pytest.raises(UserError, match=r"objective rotation needs views\.crops of layout quarter_turns"):
        small("unused", views={"crops": crops, "augment": {"blur_p": 0}}, objective={"name": "rotation"})


@pytest.fixture(scope="module")
def noise(tmp_path_factory: pytest.TempPathFactory) -> ShardSet:
    """Wide pictures of smooth noise: nothing of their content has a direction."""
    random = np.random.default_rng(0)
    store = open_store(str(tmp_path_factory.mktemp("noise")))
    writer = ShardWriter(store, "00000.tar")
    for number in range(IMAGES):
        buffer = io.BytesIO()
        wider = Image.fromarray(random.integers(0, 256, (HEIGHT + 40, WIDTH + 40, 3), np.uint8))
        smooth = ImageOps.autocontrast(wider.filter(ImageFilter.GaussianBlur(3)))
        smooth.crop((20, 20, 20 + WIDTH, 20 + HEIGHT)).save(buffer, "JPEG", quality=95)  # without the filter's borders
        writer.add(f"{number:06d}", buffer.getvalue(), source=f"{number}.jpg", width=WIDTH, height=HEIGHT)
    writer.commit()
    write_manifest(store, ["00000.tar"])
    return ShardSet.open(store.url)


def turned_crops(shards: ShardSet, ratio: tuple[float, float], scale: tuple[float, float]) -> Tensor:
    """What training sees: [4, IMAGES, 3, SIZE, SIZE], by turn."""
    plain = Augment(jitter_p=0, grey_p=0, blur_p=0, ratio=ratio)
    spec = CropSpec(1, SIZE, scale, plain, "quarter_turns")
    loader = Loader(shards, Plan(shards.counts, IMAGES, seed=0), slots_of(0, 1, IMAGES), [spec], seed=0)
    try:
        return torch.stack(next(iter(loader.batches(0, 1))).crops)
    finally:
        loader.close()


def turned_before_the_crop(shards: ShardSet) -> Tensor:
    """The wrong way: the wide picture is turned in its own frame, and cut then."""
    random, rows = np.random.default_rng(0), shards.sidecar(0).to_pylist()
    by_turn = []
    for turn in range(TURNS):
        crops = []
        for row in rows:
            picture = Image.open(io.BytesIO(shards.read(0, row))).rotate(90 * turn)
            side = int(random.integers(60, HEIGHT + 1))
            left, top = (int(random.integers(0, most - side + 1)) for most in (WIDTH, HEIGHT))
            cut = picture.resize((SIZE, SIZE), Image.Resampling.BILINEAR, (left, top, left + side, top + side))
            crops.append(torch.from_numpy(np.array(cut)).permute(2, 0, 1) / 127.5 - 1)
        by_turn.append(torch.stack(crops))
    return torch.stack(by_turn)


def accuracy_by_borders(crops: Tensor) -> float:
    """How often a linear classifier, fitted to half of the images, tells the turns of the others by the outermost
    pixels of the four sides, and by how rough the picture is along rows and columns."""
    sides = (crops[..., 0, :], crops[..., -1, :], crops[..., 0], crops[..., -1])
    found = [value for side in sides for value in (side.mean((2, 3)), side.std((2, 3)), side.amin((2, 3)))]
    along, down = (crops.diff(dim=dim).square().mean((2, 3, 4)) for dim in (4, 3))
    found.append((along / down).log())
    features = torch.stack(found, dim=2).double()  # [4, n, 13]
    features = (features - features.mean((0, 1))) / features.std((0, 1))
    features = torch.cat([features, torch.ones_like(features[..., :1])], dim=2)
    learnt, tested = (half.flatten(0, 1) for half in features.chunk(2, dim=1))
    truth = torch.arange(TURNS).repeat_interleave(crops.shape[1] // 2)
    weights = torch.linalg.lstsq(learnt, torch.eye(TURNS, dtype=torch.float64)[truth]).solution
    return float(((tested @ weights).argmax(1) == truth).double().mean())


def test_borders_of_wide_pictures_do_not_give_the_turn_away(noise: ShardSet) -> None:
    """As they do where pictures are turned before they are cut."""
    assert accuracy_by_borders(turned_before_the_crop(noise)) > 0.4
    assert accuracy_by_borders(turned_crops(noise, (1, 1), (0.2, 1.0))) < 0.36  # chance and four deviations


def test_square_boxes_are_what_keeps_wide_pictures_from_being_squeezed(noise: ShardSet) -> None:
    """The reason of the recipes' ``ratio``: boxes as wide as the picture are squeezed along it, and that has a turn."""
    assert accuracy_by_borders(turned_crops(noise, (3 / 4, 4 / 3), (0.8, 1.0))) > 0.4
    assert accuracy_by_borders(turned_crops(noise, (1, 1), (0.8, 1.0))) < 0.36


def test_views_count_turns() -> None:
    crop = {"count": 2, "size": 16, "scale": (0.3, 1.0), "layout": "quarter_turns"}
    views = Views.model_validate({"crops": [crop], "augment": {"blur_p": 0}})
    assert views.count == 8
    assert RotationSettings(name="rotation").chance_loss(views, 8) == pytest.approx(math.log(4))


def test_the_recipes_cut_square_boxes() -> None:
    from seer_pipe.recipes import load_recipe

    for name in ("rotation_resnet50", "rotation_imagenette", "rotation_cpu"):
        assert load_recipe(Path(name), []).views.augment.ratio == (1, 1)
