"""A contact sheet: what was stored, by random samples, and what was not, by reasons."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ingest.media import demand_av
from ingest.sources import CLIPS
from ingest.tools.clip_tile import clip_tile, pair_tile
from ingest.tools.rejected import EXPLANATIONS, rejected_tables
from seer_pipe.errors import UserError
from seer_pipe.shards import ShardSet

TILE, GAP, MARGIN, COLUMNS = 160, 6, 24, 8  # pixels, pixels, pixels, tiles
PANEL, LINE, EXAMPLES = 620, 20, 2  # pixels, pixels, sources shown of each reason
INK, FAINT, BAR, PAPER = "#1a1a1a", "#6b6b6b", "#c7d7ea", "#ffffff"


def show(root: str | os.PathLike[str], out: str | os.PathLike[str], samples: int = 48, seed: int = 0) -> None:
    """Write the PNG ``out``: ``samples`` images or clips chosen by ``seed``, beside the reasons for rejection.

    UserError where there is no shard set or no place for the PNG.
    """
    if samples < 1:
        raise UserError(f"samples = {samples}: at least 1")
    shards = ShardSet.open(root)
    if shards.media in CLIPS:
        demand_av()
    tiles, reasons = _tiles(shards, samples, seed), _reasons(shards)
    step = TILE + GAP + (LINE if any(caption for _, caption in tiles) else 0)
    height = max(MARGIN * 2 + 40 + _rows(len(tiles)) * step, _panel_height(reasons))
    sheet = Image.new("RGB", (MARGIN * 3 + COLUMNS * (TILE + GAP) + PANEL, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    draw.text((MARGIN, MARGIN), f"{len(tiles)} of {len(shards):,} stored", INK, ImageFont.load_default(20))
    small = ImageFont.load_default(11)
    for number, (tile, caption) in enumerate(tiles):
        row, column = divmod(number, COLUMNS)
        left, top = MARGIN + column * (TILE + GAP), MARGIN + 40 + row * step
        sheet.paste(tile, (left + (TILE - tile.width) // 2, top + (TILE - tile.height) // 2))
        draw.text((left, top + TILE + 2), _fitted(" ".join(caption.split()), small, TILE), FAINT, small)
    _draw_reasons(draw, MARGIN * 2 + COLUMNS * (TILE + GAP), reasons)
    try:
        sheet.save(Path(out), "PNG")
    except OSError as error:
        raise UserError(f"{out}: cannot be written: {error.strerror or error}") from None


def _rows(tiles: int) -> int:
    return -(-tiles // COLUMNS)


def _tiles(shards: ShardSet, samples: int, seed: int) -> list[tuple[Image.Image, str]]:
    """Images, each with the text beside it, which is empty where there is none; of clips their frames and waveform."""
    total = len(shards)
    chosen = np.sort(np.random.default_rng(seed).choice(total, min(samples, total), replace=False))
    tiles = []
    shard_of = shards.shards_of(chosen)
    for shard in np.unique(shard_of).tolist():
        about = ["duration"] if shards.media in CLIPS else ["distance"] if shards.media == "pair" else []
        rows = shards.sidecar(shard, ["key", "offset", "length", "crc32c", *about])
        captions = shards.captions(shard)
        for place in (chosen[shard_of == shard] - shards.starts[shard]).tolist():
            (row,) = rows.slice(place, 1).to_pylist()
            data, caption = shards.read(shard, row), (captions[place] if captions else "") or ""
            if shards.media == "image":
                with Image.open(BytesIO(data)) as image:
                    image.thumbnail((TILE, TILE))
                    tiles.append((image.convert("RGB"), caption))
            elif shards.media == "pair":
                tiles.append((pair_tile(data, TILE), caption or f"{row['key']}, {row['distance']:.0f} px"))
            else:
                tiles.append((clip_tile(data, TILE), caption or f"{row['key']}, {row['duration']:.1f} s"))
    return tiles


def _reasons(shards: ShardSet) -> list[tuple[str, int, list[str]]]:
    """Each reason, how often it occurs and some of the sources; the most frequent first."""
    counts: Counter[str] = Counter()
    sources: defaultdict[str, list[str]] = defaultdict(list)
    for table in rejected_tables(shards):
        counts.update(table["reason"].to_pylist())
        for row in table.select(["reason", "source"]).to_pylist():
            if len(sources[row["reason"]]) < EXAMPLES:
                sources[row["reason"]].append(row["source"])
    return [(reason, count, sources[reason]) for reason, count in counts.most_common()]


def _panel_height(reasons: list[tuple[str, int, list[str]]]) -> int:
    return MARGIN * 2 + 40 + sum(LINE * (2 + len(sources)) + GAP * 2 for _, _, sources in reasons)


def _draw_reasons(draw: ImageDraw.ImageDraw, left: int, reasons: list[tuple[str, int, list[str]]]) -> None:
    title, text, small = (ImageFont.load_default(size) for size in (20, 15, 13))
    total = sum(count for _, count, _ in reasons)
    draw.text((left, MARGIN), f"{total:,} rejected", INK, title)
    top = MARGIN + 40
    for reason, count, sources in reasons:
        draw.rectangle((left, top, left + PANEL * count / total, top + LINE - 2), BAR)
        draw.text((left + 4, top), f"{reason}  {count:,}", INK, text)
        for number, line in enumerate([EXPLANATIONS.get(reason, ""), *sources], 1):
            draw.text((left + 4, top + number * LINE), _fitted(line, small), INK if number == 1 else FAINT, small)
        top += LINE * (2 + len(sources)) + GAP * 2


def _fitted(line: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int = PANEL) -> str:
    """The line, or its two ends where ``width`` pixels are too few for it."""
    line = line.encode("latin-1", "replace").decode("latin-1")  # what the font has
    kept = len(line)
    shown = line
    while font.getlength(shown) > width and kept > 4:
        kept -= 4
        shown = f"{line[: kept // 2]} … {line[-(kept // 2) :]}"
    return shown
