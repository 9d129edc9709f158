"""The atlas of a shard set: the prototypes of a run as clusters, on a page that opens from a folder without a network.

OUT/index.html     the page
OUT/data.js        what it shows
OUT/sheet-000.jpg  the nearest images of SHEET prototypes, a row each; outliers.jpg
OUT/keys/12.csv    the keys of prototype 12, for seer-ingest exclude (up to KEYS images; beyond, atlas-keys)
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from PIL import Image

from seer_pipe.errors import UserError
from seer_pipe.evaluate.embed import embed, features_of_files
from seer_pipe.evaluate.subject import open_data_of
from seer_pipe.report.clusters import ANSWERS, Clusters, Floats, clusters, count, open_embeddings
from seer_pipe.report.page import environment, style
from seer_pipe.report.pictures import thumbnail, thumbnails
from seer_pipe.shards import ShardSet
from seer_pipe.store import FolderStore

SIDE, SHEET, KEYS = 64, 32, 2_000_000  # pixels of a picture, prototypes a sheet, images whose keys are written out


def write_atlas(
    run: Path, out: Path, data: str | None, embeddings: Path | None, labels: str | None, search: Sequence[Path] = ()
) -> Path:
    """Draw the atlas of a run's shard set, or of ``data``, in folder ``out``; the page's path.

    ``embeddings``: a file of ``seer-pipe embed``; by default RUN/embeddings.parquet, made where it is not there.
    ``labels``: what purity is told by, as of the evaluations, instead of by domain.
    ``search``: image files whose nearest images and prototypes the page is to show.
    """
    data = data or default_data(run)
    file = embeddings or run / "embeddings.parquet"
    if not file.exists():
        embed(run, data, file, say=functools.partial(print, file=sys.stderr))
    shards = ShardSet.open(data)
    prototypes = int((count(open_embeddings(file)) > 0).sum())
    show = 9 if prototypes <= 1000 else 6 if prototypes <= 4000 else 4
    asked = features_of_files(run, list(search), file).numpy() if search else None
    found = clusters(file, shards, labels, show, asked)
    if out.exists() and any(out.iterdir()) and not (out / "data.js").exists():
        raise UserError(f"{out}: holds something else; choose another --out")
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir(parents=True)
    store = FolderStore(out)
    _draw(shards, found, show, out, search)
    with_keys = found.images <= KEYS
    if with_keys:
        write_all_keys(file, out / "keys")
    names = [file.name for file in search]
    about = _about(found, show, with_keys, names) | {"embeddings": str(file), "by": "label" if labels else "domain",
                                              "data": data, "name": run.name}  # fmt: skip
    store.put("data.js", f"const ATLAS = {json.dumps(about, separators=(',', ':'))};\n".encode())
    page = environment().get_template("atlas.html").render(name=run.name, style=style(), script=_script())
    store.put("index.html", page.encode())
    return out / "index.html"


def default_data(run: Path) -> str:
    """The shard set that a run was trained on."""
    return open_data_of(run).store.url


def _script() -> Any:
    from importlib.resources import files

    from markupsafe import Markup

    return Markup(files("seer_pipe.report").joinpath("atlas.js").read_text())


def _about(found: Clusters, show: int, with_keys: bool, asked: list[str]) -> dict[str, Any]:
    """Columns of numbers, which stay small for 16,000 prototypes."""

    def short(column: Floats) -> list[float]:
        return [round(value, 4) for value in column.tolist()]

    def named(rows: list[int]) -> list[tuple[str, int]]:
        return [(found.rows.key[row], int(found.rows.prototype[row])) for row in rows]

    return {
        "images": found.images, "prototypes": found.prototypes, "sampled": len(found.rows.key),
        "show": show, "side": SIDE, "sheet": SHEET,
        "keys": with_keys,
        "prototype": found.prototype.tolist(), "size": found.size.tolist(),
        "cohesion": short(found.cohesion), "repeated": short(found.repeated),
        "x": short(found.place[:, 0]), "y": short(found.place[:, 1]),
        "near": found.near.tolist(),
        "group": [name for name, _ in found.group], "share": [round(share, 3) for _, share in found.group],
        "nearest": [[found.rows.key[row] for row in rows] for rows in found.nearest],
        "outliers": named(found.outliers),
        "asked": [[name, named(rows), homes] for name, (rows, homes) in zip(asked, found.asked, strict=True)],
    }  # fmt: skip


def _draw(shards: ShardSet, found: Clusters, show: int, out: Path, search: Sequence[Path]) -> None:
    """Sheets of the nearest images, one of the outliers, and one of what was searched for with what is nearest."""
    starts = dict(zip(shards.paths, shards.starts.tolist(), strict=False))

    def sample(row: int) -> int:
        return int(starts[found.rows.shard[row]] + found.rows.index[row])

    for sheet, first in enumerate(range(0, len(found.nearest), SHEET)):
        part = [[sample(row) for row in rows] for rows in found.nearest[first : first + SHEET]]
        _sheet(shards, part, show).save(out / f"sheet-{sheet:03d}.jpg", quality=75)
    outliers = [sample(row) for row in found.outliers]
    rows = [outliers[at : at + 8] for at in range(0, len(outliers), 8)]
    _sheet(shards, rows, 8).save(out / "outliers.jpg", quality=75)
    if search:
        answers = _sheet(shards, [[sample(row) for row in rows] for rows, _ in found.asked], ANSWERS)
        sheet_of_asked = Image.new("RGB", (answers.width + SIDE, answers.height))
        sheet_of_asked.paste(answers, (SIDE, 0))
        for down, file in enumerate(search):
            sheet_of_asked.paste(thumbnail(file.read_bytes(), SIDE), (0, down * SIDE))
        sheet_of_asked.save(out / "asked.jpg", quality=85)


def _sheet(shards: ShardSet, rows: Sequence[Sequence[int]], columns: int) -> Image.Image:
    pictures = thumbnails(shards, [sample for row in rows for sample in row], SIDE)
    sheet = Image.new("RGB", (columns * SIDE, max(1, len(rows)) * SIDE), "#888")
    for down, row in enumerate(rows):
        for across, sample in enumerate(row):
            if sample in pictures:
                sheet.paste(pictures[sample], (across * SIDE, down * SIDE))
    return sheet


def write_all_keys(file: Path, folder: Path) -> None:
    """A list for each prototype, of all its images."""
    table = open_embeddings(file).read(["key", "shard", "prototype"]).sort_by("prototype")
    prototypes = table["prototype"].to_numpy()
    folder.mkdir(parents=True, exist_ok=True)
    there, starts = np.unique(prototypes, return_index=True)
    for prototype, start, stop in zip(there, starts, [*starts[1:], len(prototypes)], strict=True):
        _write_keys(table.select(["key", "shard"]).slice(start, stop - start), folder / f"{prototype}.csv")


def write_keys(file: Path, prototypes: Sequence[int], out: Path) -> int:
    """Keys and shards of the images of some prototypes, a row group at a time; how many they are."""
    data = open_embeddings(file)
    parts = []
    for group in range(data.num_row_groups):
        table = data.read_row_group(group, ["key", "shard", "prototype"])
        parts.append(table.filter(pc.is_in(table["prototype"], pa.array(prototypes, pa.int32()))))
    found = pa.concat_tables(parts).select(["key", "shard"])
    if found.num_rows == 0:
        raise UserError(f"{file}: no image of prototype {', '.join(map(str, prototypes))}")
    _write_keys(found, out)
    return found.num_rows


def _write_keys(table: pa.Table, out: Path) -> None:
    pa_csv.write_csv(table, out, pa_csv.WriteOptions(quoting_style="needed"))
