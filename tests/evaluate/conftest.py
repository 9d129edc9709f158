"""Labelled images of two colours, and a backbone that never saw them."""

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from PIL import Image

from seer_pipe.export import Preprocessing, export_backbone, recalibrate_batch_norm
from seer_pipe.models import build_trunk
from seer_pipe.shards import ShardWriter, write_manifest
from seer_pipe.store import open_store

COLOURS = {"red": (200, 30, 30), "blue": (30, 30, 200)}


def picture(name: str, number: int) -> Image.Image:
    noise = np.random.default_rng(number).integers(-25, 25, (40, 52, 3))
    return Image.fromarray(np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("folder")
    for number in range(24):
        name = sorted(COLOURS)[number % 2]
        (root / name).mkdir(exist_ok=True)
        picture(name, number).save(root / name / f"{number:02d}.{'png' if number % 5 == 0 else 'jpg'}")
    (root / "red" / "note.txt").write_text("no picture")
    return root


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("shards")
    store = open_store(root)
    writer = ShardWriter(store, "00000.tar", [pa.field("colour", pa.string())])
    for number in range(24):
        name = sorted(COLOURS)[number % 2]
        buffer = io.BytesIO()
        picture(name, number).save(buffer, "JPEG")
        writer.add(f"{number:06d}", buffer.getvalue(), source=f"x/{name}/{number}.jpg", width=52, height=40,
                   colour=None if number == 3 else name)  # fmt: skip
    writer.commit()
    write_manifest(store, ["00000.tar"])
    return root


@pytest.fixture(scope="module")
def backbone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    out = tmp_path_factory.mktemp("export") / "out"
    trunk = build_trunk("regnety_200mf")
    recalibrate_batch_norm(trunk, torch.randn(4, 16, 3, 32, 32))
    export_backbone(trunk, out, images=torch.randn(2, 3, 32, 32), metadata={"images_seen": "7"},
                    preprocessing=Preprocessing(size=32))  # fmt: skip
    return out
