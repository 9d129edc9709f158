"""A picture of what the network sees: some images of a step, and every crop that is cut from them."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from seer_pipe.config import Config
from seer_pipe.data.chunks import Samples
from seer_pipe.data.dali import BadImages
from seer_pipe.data.seen import Maker, Seen
from seer_pipe.data.sources import open_data
from seer_pipe.data.stream import Stream
from seer_pipe.data.views import UNCHANGED, Crops
from seer_pipe.errors import UserError
from seer_pipe.report.thumbnails import as_heard, as_seen
from seer_pipe.train.build import build_crops

SIDE, GAP, LINE, HEADER = 224, 8, 12, 40  # pixels
WIDTH = 112  # of a column at the least: a caption's
COLOURS = ("#e6194b", "#3cb44b", "#4363d8", "#f58231", "#911eb4", "#008080", "#9a6324", "#808000")


def draw_crops(config: Config, out: Path, *, images: int, step: int) -> None:
    """Write a PNG: a row for each of the first ``images`` of ``step``, with the boxes and all crops of each.

    The crops are those of a training with this config, bit for bit. Images that cannot be used, which training
    replaces, are skipped; where none can be used it is a `UserError`.
    """
    shards, plan = open_data(config.data, config.train.batch, config.seed)
    specs = build_crops(config)
    slots = np.arange(min(images, config.train.batch))
    stream = Stream(shards, plan, slots, threads=config.data.threads)
    maker = Maker(
        specs, config.views.sound, config.views.frames, seed=config.seed, threads=config.data.threads,
        max_batch=len(slots),
    )  # fmt: skip
    try:
        samples = stream.read(plan.locate(step, slots))
        rows = [row for row in range(len(samples)) if row not in samples.reasons]
        while True:
            if not rows:
                raise UserError(f"{config.data.path}: none of the {len(slots)} images of step {step} can be used; "
                                "run seer-ingest verify on the set")  # fmt: skip
            usable, epochs = samples.take(rows), plan.epoch_of(step, slots[rows])
            keys = usable.places.drawn_as(plan.samples)
            try:
                seen = maker(usable.data, epochs, keys, usable.height, usable.width)
                break
            except BadImages as error:
                rows = [row for i, row in enumerate(rows) if i not in error.indices]
    finally:
        stream.close()
        maker.close()
    names = [f"{Path(shards.paths[s]).name} no. {i}" for s, i in
             zip(usable.places.shard.tolist(), usable.places.index.tolist(), strict=True)]  # fmt: skip
    out.parent.mkdir(parents=True, exist_ok=True)
    _sheet(usable, names, seen, f"{config.name}: step {step}").save(out)


def _sheet(samples: Samples, names: list[str], seen: Seen, title: str) -> Image.Image:
    views, crops = seen.views, seen.crops
    sides = [(crop[0, 0].numel() // crop.shape[-1], crop.shape[-1]) for crop in crops] + [
        tuple(sound.shape[2:]) for sound in seen.sounds
    ]
    columns = [SIDE, *(max(width, WIDTH) for width, _ in sides)]
    starts = np.cumsum([GAP, *(width + GAP for width in columns)]).tolist()
    tall = max(SIDE, *(height for _, height in sides)) + 3 * LINE + GAP
    sheet = Image.new("RGB", (starts[-1], HEADER + len(samples) * tall + GAP), "white")
    pen = ImageDraw.Draw(sheet)
    pen.text((GAP, 6), title, fill="black")
    pen.text((GAP, 22), "image, and where its crops are", fill="black")
    for place, crop in enumerate(crops):
        pen.text((starts[place + 1], 22), f"crop {place}: {crop.shape[-1]} px", fill=COLOURS[place % len(COLOURS)])
    for sound in seen.sounds:
        pen.text((starts[len(crops) + 1], 22), f"sound: {sound.shape[2]} x {sound.shape[3]}", fill="black")
    for row, data in enumerate(seen.pictures):
        top = HEADER + row * tall
        boxes = [(of, crop.box[row].tolist()) for of, crop in zip(seen.of, views, strict=True)]
        picture = _with_boxes([bytes(one) for one in data], boxes)
        sheet.paste(picture, (starts[0], top))
        about = f"{names[row]}\n{samples.width[row]}x{samples.height[row]}"
        pen.multiline_text((starts[0], top + picture.height + 2), about, fill="black", spacing=0)
        for place, (view, crop) in enumerate(zip(views, crops, strict=True)):
            x = starts[place + 1]
            sheet.paste(as_seen(crop[row]), (x, top))
            pen.multiline_text((x, top + crop.shape[-1] + 2), _caption(view, row), fill="black", spacing=0)
        for sound in seen.sounds:
            sheet.paste(as_heard(sound[row]), (starts[len(crops) + 1], top))
    return sheet


def _with_boxes(pictures: list[bytes], boxes: list[tuple[int, list[int]]]) -> Image.Image:
    """The pictures beside each other, with the boxes of the crops: the number of its picture, and where it is there."""
    side, shown = SIDE // len(pictures), []
    for number, data in enumerate(pictures):
        with Image.open(io.BytesIO(data)) as opened:
            scale = side / max(opened.size)
            size = (max(1, round(opened.width * scale)), max(1, round(opened.height * scale)))
            picture = opened.convert("RGB").resize(size)
        pen = ImageDraw.Draw(picture)
        for place, (of, (top, left, height, width)) in enumerate(boxes):
            if of == number:
                corners = [value * scale for value in (left, top, left + width - 1, top + height - 1)]
                pen.rectangle(corners, outline=COLOURS[place % len(COLOURS)], width=2)
        shown.append(picture)
    sheet = Image.new("RGB", (side * len(shown), max(one.height for one in shown)), "white")
    for number, one in enumerate(shown):
        sheet.paste(one, (number * side, 0))
    return sheet


def _caption(view: Crops, row: int) -> str:
    """What was done to the crop: three short lines."""
    factors = view.factors[row].tolist()
    changed = any(factor != UNCHANGED[i] for i, factor in enumerate(factors))
    grey = ("colour", "grey", "red", "green", "blue")[view.grey[row]]
    done = {
        "flip": view.flip[row], grey: view.grey[row], f"blur {view.sigma[row]:.1f}": view.sigma[row] > 0,
        "solarise": view.solarise[row],
    }  # fmt: skip
    values = dict(zip("bcsh", factors, strict=True))
    jitter = [f"{name} {values[name]:.2f}" for name in ("bcsh"[i] for i in view.order[row])] if changed else []
    lines = [" ".join(jitter[:2]), " ".join(jitter[2:]), " ".join(name for name, was in done.items() if was)]
    return "\n".join(line for line in lines if line)
