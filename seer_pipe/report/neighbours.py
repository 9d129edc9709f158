"""A picture of what a trunk takes to be alike, before and after training."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw

from seer_pipe.evaluate.features import Features, Images, extract
from seer_pipe.evaluate.knn import neighbours
from seer_pipe.evaluate.pictures import ShardPictures
from seer_pipe.evaluate.subject import load_run, recalibrate
from seer_pipe.report.thumbnails import thumbnails
from seer_pipe.shards import ShardSet

ROWS, COLUMNS, SIDE, GAP, HEADER = 10, 6, 96, 6, 22  # pixels


def draw_neighbours(run: Path, data: str, out: Path) -> None:
    """Rows of an image, its nearest images under the first weights of ``run``, and under its last ones."""
    shards = ShardSet.open(data)
    found: list[Features] = []
    for untrained in (True, False):
        subject, _, _ = load_run(run, untrained=untrained)
        pictures = ShardPictures(shards)
        images = Images(pictures, subject.size, subject.frames)
        if untrained:
            recalibrate(subject, pictures)
        found.append(extract(subject.trunk, images, pictures.usable))
        images.close()
    count = len(found[0].samples)
    asked = torch.arange(0, count, max(1, count // ROWS))[:ROWS]
    nearest = [neighbours(f.matrix, f.matrix, min(COLUMNS, count - 1), leave_one_out=True)[1][asked] for f in found]
    width = (2 * COLUMNS + 1) * (SIDE + GAP) + 3 * GAP
    sheet = Image.new("RGB", (width, HEADER + len(asked) * (SIDE + GAP) + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    starts = [GAP, 2 * GAP + SIDE + GAP, 3 * GAP + (COLUMNS + 1) * (SIDE + GAP)]
    for start, title in zip(starts, ("image", "nearest, untrained", "nearest, trained"), strict=True):
        pen.text((start, 5), title, fill="black")
    shown = {f.samples[place] for f, places in zip(found, nearest, strict=True) for place in places.flatten().tolist()}
    small = thumbnails(shards, [found[0].samples[image] for image in asked.tolist()] + sorted(shown), SIDE)
    for row, image in enumerate(asked.tolist()):
        y = HEADER + row * (SIDE + GAP)
        sheet.paste(small[found[0].samples[image]], (starts[0], y))
        for start, features, places in zip(starts[1:], found, nearest, strict=True):
            for column, place in enumerate(places[row].tolist()):
                sheet.paste(small[features.samples[place]], (start + column * (SIDE + GAP), y))
    out.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(out)
