"""A gate for objectives that hear: six colours of a ground and six of a disc on it, each with a tone of its own."""

import colorsys
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from seer_pipe import config as settings
from seer_pipe.config import Sound
from tests.media import Members, flac, jpeg, write_pairs

TONES = 6
KINDS = TONES**2
GATE = Sound(spectrum="log_mel", bands=32, seconds=0.2, shift=0.05)


def pair(kind: int, dice: np.random.Generator) -> Members:
    """A disc anywhere on a ground; two tones from anywhere, in noise."""
    ground, disc = (tuple(round(255 * x) for x in colorsys.hsv_to_rgb(hue / TONES, 0.9, v))
                    for hue, v in ((kind // TONES, 0.9), (kind % TONES, 0.6)))  # fmt: skip
    image = Image.new("RGB", (40, 40), ground)
    x, y, radius = dice.uniform(12, 28), dice.uniform(12, 28), dice.uniform(9, 13)
    ImageDraw.Draw(image).ellipse((x - radius, y - radius, x + radius, y + radius), disc)
    times = np.arange(8000) / 16_000
    low, high = 300 * 1.3 ** (kind // TONES), 2000 * 1.2 ** (kind % TONES)
    waves = [a * np.sin(2 * np.pi * (f * times + dice.random())) for f in (low, high) for a in [dice.uniform(0.2, 0.4)]]
    return {"jpg": jpeg(image), "flac": flac((sum(waves) + dice.normal(0, 0.02, 8000)).astype(np.float32))}


def gate_set(root: Path, instances: int, seed: int, *, shuffled: bool = False) -> Path:
    """The folder of a sample is its ground."""
    dice = np.random.default_rng(seed)
    kinds = instances * list(range(KINDS))
    drawn = [pair(kind, dice) for kind in kinds]
    if shuffled:
        sounds = [drawn[i]["flac"] for i in dice.permutation(len(drawn))]
        drawn = [members | {"flac": sound} for members, sound in zip(drawn, sounds, strict=True)]
    sources = [f"{kind // TONES}/drawn" for kind in kinds]
    return write_pairs(root, [(source, members, 40, 40) for source, members in zip(sources, drawn, strict=True)])


def gate(data: Path, objective: dict[str, Any] | None = None, **train: Any) -> settings.Config:
    """A recipe for such a set, with settings of the objective and of the training other than those."""
    tree: dict[str, Any] = {
        "name": "gate",
        "data": {"path": str(data)},
        "views": {
            "crops": [{"count": 1, "size": 24, "scale": [0.6, 1]}],
            "augment": {"jitter_p": 0.0, "grey_p": 0.0, "blur_p": 0.0},
            "sound": GATE.model_dump(),
        },
        "model": {"name": "conv2d_10"},
        "objective": {
            "name": "image_audio",
            "head": {"hidden": [128], "dim": 32, "batch_norm": False},
            **(objective or {}),
        },
        "optimizer": {"name": "adamw", "lr": 0.008, "warmup_images": 320, "weight_decay": 1e-4},
        "train": {
            "batch": 64,
            "images": 3072,
            "threads": 1,
            "device": "cpu",
            "log_every": 25,
            "channels_last": True,
            **train,
        },
    }
    return settings.parse(tree, "gate")
