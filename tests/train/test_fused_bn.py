"""BatchNorm and ReLU in one: against float64, over ranks against one process, compiled for a GPU."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn

from seer_pipe.errors import UserError
from seer_pipe.models import build_trunk
from seer_pipe.train.fused_bn import FusedBatchNorm, fuse, fuse_trunks
from seer_pipe.train.syncbn import convert
from tests.distributed import run_ranks

CPU = torch.device("cpu")
interpreted = pytest.mark.skipif(os.environ.get("TRITON_INTERPRET") != "1", reason="tensors of a CPU")


def layer(channels: int) -> nn.Sequential:
    generator = torch.Generator().manual_seed(1)
    made = nn.Sequential(nn.BatchNorm2d(channels), nn.ReLU())
    for tensor in (made[0].weight, made[0].bias):
        tensor.data.copy_(torch.randn(channels, generator=generator))
    return made


def images(shape: tuple[int, ...], offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """An input in NHWC, and the gradient of an output."""
    generator = torch.Generator().manual_seed(2)
    x, g = (torch.randn(shape, generator=generator).contiguous(memory_format=torch.channels_last) for _ in range(2))
    return x + offset, g


def results(made: nn.Module, x: Tensor, g: Tensor) -> dict[str, Tensor]:
    x = x.detach().requires_grad_()
    y = made(x)
    y.backward(g)
    assert x.grad is not None
    return {"y": y.detach(), "x": x.grad, "weight": made[0].weight.grad, "bias": made[0].bias.grad,
            **dict(made.named_buffers())}  # fmt: skip


@interpreted
@pytest.mark.parametrize(
    ("shape", "dtype", "offset"),
    [
        ((3, 5, 7, 6), torch.float32, 0.0),
        ((2, 70, 9, 8), torch.float32, 100.0),  # two blocks of channels, several of rows; a mean far from zero
        ((5, 3, 1, 1), torch.float32, 0.0),
        ((4, 8, 6, 6), torch.float16, 1.0),
    ],
)
def test_it_equals_both_in_float64(shape: tuple[int, ...], dtype: torch.dtype, offset: float) -> None:
    x, g = (tensor.to(dtype) for tensor in images(shape, offset))
    expected = results(layer(shape[1]).double(), x.double(), g.double())
    made = layer(shape[1])
    fuse(made)
    assert type(made[0]) is FusedBatchNorm
    found = results(made, x, g)
    assert found["y"].is_contiguous(memory_format=torch.channels_last)
    assert found["y"].dtype == found["x"].dtype == dtype
    tolerance = {torch.float32: 2e-5 * max(1.0, offset / 10), torch.float16: 4e-3}[dtype]
    for name, value in expected.items():
        torch.testing.assert_close(found[name].to(value.dtype), value, rtol=tolerance, atol=tolerance, msg=name)


@interpreted
def test_what_is_not_finite_stays_so() -> None:
    x, g = images((2, 3, 4, 4))
    x[0, 1, 2, 3] = torch.nan
    made = layer(3)
    fuse(made)
    found = results(made, x, g)
    assert found["y"][:, 1].isnan().all()
    assert found["x"][:, 1].isnan().any()
    assert found["y"][:, [0, 2]].isfinite().all()


def test_only_pairs_are_joined_and_evaluation_and_names_are_as_before() -> None:
    made = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3), nn.ReLU(), nn.Conv2d(3, 3, 1))
    names, x = list(made.state_dict()), images((2, 3, 4, 4))[0]
    expected = made.eval()(x)
    fuse(made)
    assert [type(part) for part in made] == [nn.BatchNorm2d, nn.Conv2d, FusedBatchNorm, nn.Identity, nn.Conv2d]
    assert list(made.state_dict()) == names
    torch.testing.assert_close(made(x), expected, rtol=0, atol=0)


def test_what_cannot_be_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    with torch.device("meta"):
        regnet, resnet = build_trunk("regnety_200mf"), build_trunk("resnet18")
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(UserError, match=r"train\.fused_bn: resnet18 has no BatchNorm over whole batches with a ReLU"):
        fuse_trunks(resnet, CPU, torch.channels_last)
    with pytest.raises(UserError, match=r"train\.fused_bn: its kernels want NHWC; set train\.channels_last"):
        fuse_trunks(regnet, CPU, torch.contiguous_format)
    monkeypatch.delenv("TRITON_INTERPRET")
    with pytest.raises(UserError, match=r"train\.fused_bn: its kernels run on a GPU alone"):
        fuse_trunks(regnet, CPU, torch.channels_last)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype: torch.dtype) -> None:
    x, g = (tensor.to("cuda", dtype) for tensor in images((16, 232, 28, 28), 3.0))
    expected = results(layer(232).double().cuda(), x.double(), g.double())
    made = layer(232).cuda()
    fuse(made)
    found = results(made, x, g)
    tolerance = {torch.float32: 1e-3, torch.bfloat16: 5e-2}[dtype]
    for name, value in expected.items():
        torch.testing.assert_close(found[name].to(value.dtype), value, rtol=tolerance, atol=tolerance, msg=name)


def of_rank(synchronous: bool) -> dict[str, Tensor]:
    """Ranks of different batches."""
    x, g = images((5, 6, 4, 4))
    made, rank = layer(6), dist.get_rank()
    if synchronous:
        convert(made)
    fuse(made)
    return results(made, *(tensor.split([3, 2])[rank] for tensor in (x, g)))


@interpreted
def test_over_ranks_it_equals_one_process() -> None:
    x, g = images((5, 6, 4, 4))
    expected = results(layer(6).double(), x.double(), g.double())
    found = run_ranks(2, of_rank, True)
    for name in ("y", "x"):
        torch.testing.assert_close(torch.cat([rank[name] for rank in found]).double(), expected[name], rtol=1e-5,
                                   atol=1e-5)  # fmt: skip
    for name in ("weight", "bias"):
        torch.testing.assert_close(sum(rank[name] for rank in found).double(), expected[name], rtol=1e-5, atol=1e-5)
    for rank in found:
        for name in ("0.running_mean", "0.running_var"):
            torch.testing.assert_close(rank[name].double(), expected[name], rtol=1e-5, atol=1e-5)


COMPILE = """
import sys
from triton import compile
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from seer_pipe.train import fused_bn
types = dict.fromkeys(("rows", "channels", "each"), "i32") | {"x": "*bf16", "gradient": "*bf16", "out": "*bf16"}
for name in ("_moments", "_normalise", "_gradient_sums", "_gradient"):
    kernel = getattr(fused_bn, name)
    constants = {"tall": fused_bn.ROWS, "wide": fused_bn.CHANNELS}
    signature = {a: "constexpr" if a in constants else types.get(a, "*fp32") for a in kernel.arg_names}
    source = ASTSource(kernel, signature, {(kernel.arg_names.index(k),): v for k, v in constants.items()})
    print(name, len(compile(source, target=GPUTarget("cuda", 90, 32)).asm["cubin"]))
"""


@pytest.mark.slow
def test_the_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    result = subprocess.run(
        [sys.executable, "-c", COMPILE], cwd=Path(__file__).resolve().parents[2], text=True,
        env=environment | {"TRITON_CACHE_DIR": str(tmp_path)}, capture_output=True, timeout=240, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    made: list[Any] = [line.split() for line in result.stdout.splitlines()]
    assert len(made) == 4
    assert all(int(size) > 1000 for _, size in made)
