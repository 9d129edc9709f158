"""Linear classifiers on cached features, against torch's own SGD in double precision."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from seer_pipe.evaluate.classifiers import GRID, Setting, fit, stratified, train_heads


def clusters(n: int, noise: float, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    return torch.eye(3, 6)[labels] * 2 + noise * torch.randn(n, 6, generator=generator), labels


def test_each_head_is_trained_as_torch_trains_it_alone() -> None:
    features, labels = clusters(40, 1.0, 0)
    features = features.double()
    chosen = [Setting(0.3, 1e-2), Setting(0.03, 1e-6)]
    weights, biases = train_heads(features, labels, 3, chosen, seed=5, steps=6)
    for head, setting in enumerate(chosen):
        generator = torch.Generator().manual_seed(5)
        layer = nn.Linear(6, 3).double()
        layer.weight.data = torch.randn(3, 6, generator=generator).double() * 0.01
        layer.bias.data.zero_()
        optimizer = torch.optim.SGD(layer.parameters(), lr=setting.lr, momentum=0.9, weight_decay=setting.weight_decay)
        cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 6)
        for _ in range(6):
            rows = torch.randperm(40, generator=generator)
            optimizer.zero_grad()
            nn.functional.cross_entropy(layer(features[rows]), labels[rows]).backward()
            optimizer.step()
            cosine.step()
        assert torch.allclose(weights[head].double(), layer.weight, atol=1e-6)
        assert torch.allclose(biases[head].double(), layer.bias, atol=1e-6)


@pytest.mark.learns
def test_what_can_be_told_apart_is_and_noise_is_not() -> None:
    x, y = clusters(120, 0.3, 1)
    best = fit(x, y, 3)
    assert best.setting in GRID
    assert best.validation == 1.0
    assert best.accuracy(*clusters(60, 0.3, 2)) == 1.0
    noise = torch.randn(120, 6, generator=torch.Generator().manual_seed(3))
    assert fit(noise, y, 3).accuracy(*clusters(60, 9.0, 4)) < 0.6


@pytest.mark.learns
def test_one_image_a_class_is_enough_to_learn_from() -> None:
    x, y = clusters(3, 0.1, 1)
    one = fit(x, y, 3)
    assert one.validation is None
    assert one.accuracy(*clusters(30, 0.1, 2)) == 1.0


@settings(max_examples=50)
@given(st.lists(st.integers(0, 4), min_size=1, max_size=60), st.floats(0.01, 1), st.integers(0, 9), st.booleans())
def test_a_part_has_its_share_of_every_class(labels: list[int], share: float, seed: int, keep_one: bool) -> None:
    y = torch.tensor(labels)
    chosen = stratified(y, share, seed, keep_one=keep_one)
    assert torch.equal(chosen, stratified(y, share, seed, keep_one=keep_one))
    for label in set(labels):
        count, taken = labels.count(label), int(chosen[y == label].sum())
        expected = max(1, round(share * count))
        assert taken == (min(expected, count - 1) if keep_one else expected)
