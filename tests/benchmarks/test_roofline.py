"""The bound of a trunk's step: what is counted on the meta device, and a measurement on the CPU, whose times are not
judged."""

import json
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch

from seer_pipe.models import multiply_adds

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def roofline(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    import roofline

    return roofline


@pytest.mark.parametrize("trunk", ["regnety_200mf", "resnet18"])
def test_what_is_counted(roofline: ModuleType, trunk: str) -> None:
    layers = {layer.label: layer for layer in roofline.count(trunk, 4, 64, torch.bfloat16)}
    stem = next(layer for layer in layers.values() if layer.convolution is not None and layer.convolution.first)
    # forward, gradient of the input, gradient of the weight; the images have none
    once = 2 * 4 * multiply_adds(trunk, 64)
    assert sum(layer.flops for layer in layers.values()) == 3 * once - stem.flops / 2
    assert [layer for layer in layers.values() if layer.flops and layer.convolution is None] == []


def test_bytes_are_those_of_each_operations_tensors(roofline: ModuleType) -> None:
    layers = {layer.label: layer for layer in roofline.count("resnet18", 4, 64, torch.bfloat16)}
    image, output, weight = 4 * 3 * 64 * 64, 4 * 64 * 32 * 32, 64 * 3 * 7 * 7
    stem = layers["7x7 3-64 stride 2 -> 64x32x32"]
    assert len(stem.names) == 1
    assert stem.bytes == 2 * ((image + weight + output) + (output + image + weight + weight))
    relu = layers["ReLU -> 64x32x32"]
    assert relu.bytes == 2 * output * (2 + 3)  # in place; backward takes the gradient and the output
    assert len(layers["3x3 128-128 -> 128x8x8"].names) == 3
    assert layers["BasicBlock -> 128x8x8"].kind == "residual sum"
    rates = roofline.Rates(1e12, 1e9)
    assert relu.seconds(rates) == pytest.approx(relu.bytes / 1e9)
    assert stem.seconds(roofline.Rates(1.0, 1e30)) == pytest.approx(stem.flops)


def test_convolutions_alone_are_those_of_the_trunk(roofline: ModuleType) -> None:
    """In either layout, the same results; the gradient of the images is not asked for."""
    shape = roofline.Convolution((2, 6, 8, 8), (8, 3, 3, 3), (2, 2), (1, 1), 2, False)
    for convolution in (shape, shape._replace(first=True)):
        for layout in roofline.LAYOUTS.values():
            forward, backward = roofline.works(convolution, "cpu", torch.float32, layout)
            assert forward().shape == (2, 8, 4, 4)
            assert forward().is_contiguous(memory_format=layout)
            of_input, of_weight, _ = backward()
            assert (of_input is None) == convolution.first
            assert of_weight.shape == (8, 3, 3, 3)


def test_a_measurement(
    roofline: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(roofline, "COPIED", 2**16)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    out = tmp_path / "found.json"
    words = ["roofline.py", "resnet18", "--crops", "2x16", "--batch", "4", "--rounds", "1", "--json", str(out)]
    monkeypatch.setattr(sys, "argv", words)
    roofline.main()
    found = json.loads(out.read_text())["trunks"]["resnet18"]
    assert "7x7 3-64 stride 2 -> 64x8x8" in capsys.readouterr().out
    assert 0 < found["arithmetic_ms"] <= found["fused_ms"] <= found["separate_ms"]
    assert found["separate_ms"] == pytest.approx(sum(found["separate_ms_by_kind"].values()))
    assert set(found["alone_ms"]) == set(found["step_ms"]) == {"NCHW", "NHWC"}
    assert 0 < found["best_alone_ms"] <= min(found["alone_ms"].values())
    assert found["step_to_separate"] <= found["step_to_fused"]
