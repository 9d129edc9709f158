"""A trunk as an ONNX graph: images [n, 3, h, w], or clips [n, 3, t, h, w], in, features [n, width] out, with all but
the channels free."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import torch
from torch import Tensor

from seer_pipe.errors import UserError
from seer_pipe.models import Trunk

#: For the model card.
ONNX_CODE = """import onnxruntime

session = onnxruntime.InferenceSession("model.onnx")
(features,) = session.run(None, {"images": images.numpy()})  # prepared as above; any number and size of them"""
_LARGEST = 2_000_000_000  # bytes of weights: a protobuf ends at 2 GiB
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


def require_onnx() -> None:
    """A `UserError` where a package that writing and checking need is not installed."""
    absent = [package for package in _PACKAGES if find_spec(package) is None]
    if absent:
        raise UserError(f"ONNX needs {', '.join(absent)}: pip install 'seer-pipe[onnx]'")


def write_onnx(trunk: Trunk, file: Path, shape: tuple[int, ...]) -> None:
    """Write the graph with its weights, traced by images of ``shape``; weights of 2 GB and more to ``file``.data. The
    trunk is on the CPU."""
    example = torch.zeros(2, *shape)  # of two images: with one, torch would take n = 1 for a constant
    torch.onnx.export(
        trunk.eval(),
        (example,),
        file,
        input_names=["images"],
        output_names=["features"],
        dynamic_shapes=({0: "n"} | dict(enumerate("thw"[1 - len(shape) :], 2)),),
        verbose=False,
        external_data=sum(tensor.nbytes for tensor in trunk.state_dict().values()) >= _LARGEST,
    )


def run_onnx(file: Path, images: Tensor) -> Tensor:
    """What ONNX Runtime makes of the images, on the CPU."""
    import onnxruntime

    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    (features,) = session.run(None, {"images": images.cpu().numpy()})
    return torch.from_numpy(features)
