"""On what a run is computed, for whoever asks later why two runs differ."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

import seer_pipe

_PACKAGES = {"torch": "torch", "DALI": "nvidia-dali-cuda130", "numpy": "numpy"}


def machine(device: torch.device, precision: torch.dtype | None) -> dict[str, str]:
    """Host, processor or GPU, precision, and versions, as short words."""
    on = torch.cuda.get_device_name(device) if device.type == "cuda" else f"{len(os.sched_getaffinity(0))} CPU cores"
    versions = [f"seer_pipe {seer_pipe.__version__}{_commit()}", f"Python {platform.python_version()}"]
    for name, package in _PACKAGES.items():
        try:
            versions.append(f"{name} {version(package)}")
        except PackageNotFoundError:
            continue
    kind = "fp32" if precision is None else str(precision).removeprefix("torch.")
    return {"host": platform.node(), "on": on, "precision": kind, "versions": ", ".join(versions)}


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
