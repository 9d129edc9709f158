"""The atlas of a shard set: its clusters, on a page that opens from a folder without a network.

OUT/index.html     the page
OUT/data.js        what it shows
OUT/clusters.parquet, OUT/centroids.safetensors    of each image and cluster, where k-means made them
OUT/sheet-000.jpg  the nearest images of SHEET clusters, a row each; outliers.jpg
OUT/keys/12.csv    the keys of cluster 12, for seer-ingest exclude (up to KEYS images; beyond, atlas-keys)
"""

from __future__ import annotations

import functools
import json
import shutil
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from PIL import Image

from seer_pipe.errors import UserError
from seer_pipe.evaluate.cluster import cluster, count
from seer_pipe.evaluate.embed import embed, features_of_files
from seer_pipe.evaluate.embeddings import names_clusters, open_clusters, open_embeddings
from seer_pipe.evaluate.subject import open_data_of
from seer_pipe.report.clusters import ANSWERS, Clusters, Floats
from seer_pipe.report.clusters import clusters as read_clusters
from seer_pipe.report.page import environment, style
from seer_pipe.report.thumbnails import thumbnail, thumbnails
from seer_pipe.shards import ShardSet

SIDE, SHEET, KEYS = 64, 32, 2_000_000  # pixels of a picture, clusters a sheet, images whose keys are written out


def write_atlas(
    run: Path,
    out: Path,
    data: str | None = None,
    *,
    embeddings: Path | None = None,
    clusters: int | None = None,
    labels: str | None = None,
    search: Sequence[Path] = (),
) -> Path:
    """Draw the atlas of a run's shard set, or of ``data``, in folder ``out``; the page's path.

    An atlas that is there is replaced once the new one is whole.

    ``run``: a run's folder, or with ``data`` an exported backbone's.
    ``embeddings``: a file of ``seer-pipe embed``; by default RUN/embeddings.parquet, made where it is not there.
    ``clusters``: so many by k-means of the features; by default those that the run's head names, and where it names
    none `default_clusters` by k-means.
    ``labels``: what purity is measured by, as in the evaluations, instead of by domain.
    ``search``: image files whose nearest images and clusters the page is to show.
    """
    data = data or default_data(run)
    if out.exists() and any(out.iterdir()) and not (out / "data.js").exists():
        raise UserError(f"{out}: holds something else; choose another --out")
    file, say = embeddings or run / "embeddings.parquet", functools.partial(print, file=sys.stderr)
    if not file.exists():
        embed(run, data, file, say=say)
    by_head = clusters is None and names_clusters(open_embeddings(file))
    asked = features_of_files(run, list(search), file).numpy() if search else None
    shards = ShardSet.open(data)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as partial:
        new = Path(partial) / "atlas"
        new.mkdir()
        named = file if by_head else cluster(file, new, clusters, say=say)
        there = int((count(open_clusters(named)) > 0).sum())
        show = 9 if there <= 1000 else 6 if there <= 4000 else 4
        found = read_clusters(file, shards, labels, show, asked, named)
        _draw(shards, found, show, new, search)
        with_keys = found.images <= KEYS
        if with_keys:
            write_all_keys(named, new / "keys")
        about = _about(found, show, with_keys, [file.name for file in search]) | {
            "named_by": "head" if by_head else "k-means", "names": str(file if by_head else out / named.name),
            "by": "label" if labels else "domain", "data": data, "name": run.name,
        }  # fmt: skip
        (new / "data.js").write_text(f"const ATLAS = {json.dumps(about, separators=(',', ':'))};\n", "utf-8")
        page = environment().get_template("atlas.html").render(name=run.name, style=style(), script=_script())
        (new / "index.html").write_text(page, "utf-8")
        shutil.rmtree(out, ignore_errors=True)
        new.rename(out)
    return out / "index.html"


def default_data(run: Path) -> str:
    """The shard set that a run was trained on."""
    return open_data_of(run).store.url


def _script() -> Any:
    from importlib.resources import files

    from markupsafe import Markup

    return Markup(files("seer_pipe.report").joinpath("atlas.js").read_text())


def _about(found: Clusters, show: int, with_keys: bool, asked: list[str]) -> dict[str, Any]:
    """Columns of numbers, which stay small for 16,000 clusters."""

    def short(column: Floats) -> list[float]:
        return [round(value, 4) for value in column.tolist()]

    def named(rows: list[int]) -> list[tuple[str, int]]:
        return [(found.rows.key[row], int(found.rows.cluster[row])) for row in rows]

    return {
        "images": found.images, "clusters": found.named, "empty": found.empty, "sampled": len(found.rows.key),
        "show": show, "side": SIDE, "sheet": SHEET,
        "keys": with_keys,
        "cluster": found.cluster.tolist(), "size": found.size.tolist(),
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
    """A list for each cluster, of all its images."""
    table = open_clusters(file).read(["key", "shard", "cluster"]).sort_by("cluster")
    clusters = table["cluster"].to_numpy()
    folder.mkdir(parents=True, exist_ok=True)
    there, starts = np.unique(clusters, return_index=True)
    for number, start, stop in zip(there, starts, [*starts[1:], len(clusters)], strict=True):
        _write_keys(table.select(["key", "shard"]).slice(start, stop - start), folder / f"{number}.csv")


def write_keys(file: Path, clusters: Sequence[int], out: Path) -> int:
    """Keys and shards of the images of some clusters, a row group at a time; how many they are."""
    data = open_clusters(file)
    parts = []
    for group in range(data.num_row_groups):
        table = data.read_row_group(group, ["key", "shard", "cluster"])
        parts.append(table.filter(pc.is_in(table["cluster"], pa.array(clusters, pa.int32()))))
    found = pa.concat_tables(parts).select(["key", "shard"])
    if found.num_rows == 0:
        raise UserError(f"{file}: no image of cluster {', '.join(map(str, clusters))}")
    _write_keys(found, out)
    return found.num_rows


def _write_keys(table: pa.Table, out: Path) -> None:
    pa_csv.write_csv(table, out, pa_csv.WriteOptions(quoting_style="needed"))
