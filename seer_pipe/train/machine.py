"""On what a run is computed, for whoever asks later why two runs differ."""

from __future__ import annotations

import os
import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import seer_pipe

RSS_UNIT = 1 if sys.platform == "darwin" else 1024  # bytes
_PACKAGES = {"torch": "torch", "DALI": "nvidia-dali-cuda130", "numpy": "numpy"}


#: Peak FLOP/s of bf16 and fp16 tensor cores, of a GPU whose name has these words; the first that fits. Dense: NVIDIA's
#: data sheets print twice as much for Hopper, with structured sparsity, and for the H100 NVL the sum of a pair in older
#: ones. The H200 is the SXM module; the A100 has the same peak on SXM and PCIe.
_PEAKS = {"H200": 989.4e12, "H100 PCIe": 756e12, "H100 NVL": 835e12, "H100": 989.4e12, "A100": 312e12}


def peak_flops(device: torch.device, precision: torch.dtype | None) -> float | None:
    """What a GPU can do at most per second in ``precision``; None where that is not known, or it is float32."""
    if device.type != "cuda" or precision is None:
        return None
    name = torch.cuda.get_device_name(device)
    return next((peak for words, peak in _PEAKS.items() if words in name), None)


def peak_memory(device: torch.device) -> float:
    """GB that this process has held at most: of tensors on its GPU, or of resident memory."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 1e9
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * RSS_UNIT / 1e9


def gpu_busy(device: torch.device) -> float | None:
    """Share of the last second or less in which a kernel ran on the GPU, as NVML says; None where nothing says it."""
    if device.type != "cuda":
        return None
    try:
        return torch.cuda.utilization(device) / 100
    except Exception:  # no NVML, or a slice of a GPU (MIG), of which it says nothing: its errors share no class
        return None


def machine(device: torch.device, precision: torch.dtype | None, layout: torch.memory_format) -> dict[str, str]:
    """Host, processor or GPU, precision, memory layout, and versions, as short words."""
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{len(os.sched_getaffinity(0))} CPU cores"
    versions = [f"seer_pipe {seer_pipe.__version__}{_commit()}", f"Python {platform.python_version()}"]
    for name, package in _PACKAGES.items():
        try:
            versions.append(f"{name} {version(package)}")
        except PackageNotFoundError:
            continue
    kind = "fp32" if precision is None else str(precision).removeprefix("torch.")
    form = "NHWC" if layout == torch.channels_last else "NCHW"
    return {
        "host": platform.node(), "on": on, "precision": kind, "layout": form, "versions": ", ".join(versions),
    }  # fmt: skip


def _commit() -> str:
    """Of the checkout that the program runs from, if it does."""
    here = Path(__file__).resolve().parents[2]
    if not (here / ".git").exists():
        return ""
    command = ["git", "-C", str(here), "describe", "--always", "--dirty"]
    try:
        found = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
    return f" ({found})"
