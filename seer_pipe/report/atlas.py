"""The atlas of a shard set: a map of its images by cluster, on a page that opens from a folder without a network.

OUT/index.html, OUT/data.js    the page, and what it shows of the clusters
OUT/points.js                  of each image on the map: where it is, and what it can be coloured by
OUT/images/003.js              key, shard, label or domain, and words of CHUNK images; fetched when they are asked for
OUT/tiles/LEVEL/X-Y.jpg        the pictures of the map; those of the last level are all there are
OUT/clips/12.mp4               what image 12 of the map plays, of a set with clips or sounds
OUT/clusters.parquet, OUT/centroids.safetensors    of each image and cluster, where k-means made them
OUT/keys/12.csv                the keys of cluster 12, for seer-ingest exclude (up to KEYS images; beyond, atlas-keys)
OUT/clusters-beside.parquet, OUT/keys-beside/      the same of a second set

A page that is a file may fetch scripts and pictures, but no data; so data are scripts.
"""

from __future__ import annotations

import base64
import functools
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
from PIL import Image

from seer_pipe.errors import UserError
from seer_pipe.evaluate.centroids import FILE as CENTROIDS
from seer_pipe.evaluate.cluster import cluster, count
from seer_pipe.evaluate.embed import embed, features_of_files
from seer_pipe.evaluate.embeddings import (
    check_set,
    data_of,
    names_clusters,
    numbers_of,
    open_clusters,
    open_embeddings,
    sampled,
)
from seer_pipe.evaluate.subject import open_data_of
from seer_pipe.report import layout
from seer_pipe.report.beside import NAMES, Pair, Parts, join, parts, split_path
from seer_pipe.report.clusters import SAMPLE, Clusters
from seer_pipe.report.clusters import clusters as read_clusters
from seer_pipe.report.page import asset, environment, style
from seer_pipe.report.played import Player
from seer_pipe.report.shown import Column, Shown, numbers, shown
from seer_pipe.report.thumbnails import thumbnail
from seer_pipe.report.tiles import SIDE, TILE, brightness, draw_tiles, small_pictures
from seer_pipe.shards import ShardSet

PICTURES = 100_000  # on the map, about
PLAYED = 2000  # images of a map of which each plays what it can
CHUNK, KEYS = 4096, 2_000_000  # images of a file of OUT/images; images whose keys are written out
KEY_LISTS = "keys", "keys-beside"  # folders, one for each set
SCRIPTS = ("atlas.js", "map.js", "choose.js", "beside.js", "lists.js")


def write_atlas(
    run: Path,
    out: Path,
    data: str | None = None,
    *,
    beside: str | None = None,
    embeddings: Path | None = None,
    clusters: int | None = None,
    labels: str | None = None,
    search: Sequence[Path] = (),
    pictures: int = PICTURES,
) -> Path:
    """Draw the atlas of a run's shard set, or of ``data``, in folder ``out``; the page's path.

    An atlas that is there is replaced once the new one is whole.

    ``run``: a run's folder, or with ``data`` an exported backbone's.
    ``beside``: a second set on the same map, or a file of ``seer-pipe embed`` of it by the same weights; by default
    RUN/embeddings-FINGERPRINT.parquet, made where it is not there.
    ``embeddings``: a file of ``seer-pipe embed``; by default RUN/embeddings.parquet, made where it is not there.
    ``clusters``: so many by k-means of the features; by default those that the run's head names, and where it names
    none `default_clusters` by k-means.
    ``labels``: what purity is measured by, as in the evaluations, instead of by domain.
    ``search``: image files whose nearest images and clusters the page is to show.
    ``pictures``: about how many images the map shows, of a larger set spread evenly over each cluster.
    """
    data = data or default_data(run)
    if out.exists() and any(out.iterdir()) and not (out / "data.js").exists():
        raise UserError(f"{out}: holds something else; choose another --out")
    say = functools.partial(print, file=sys.stderr)
    file = _embedded(run, data, embeddings or run / "embeddings.parquet", say)
    sets = [data]
    if beside is not None:
        other = Path(beside) if beside.endswith(".parquet") else None
        sets.append(data_of(other) if other else beside)
        own = run / f"embeddings-{ShardSet.open(sets[1]).fingerprint[:12]}.parquet"
        files = file, _embedded(run, sets[1], other or own, say)
    if not layout.has_tsne():
        say("openTSNE is not installed: the map is by principal components; pip install 'seer-pipe[atlas]'")
    asked = features_of_files(run, list(search), file).numpy() if search else None
    shards = Pair(*map(ShardSet.open, sets)) if beside is not None else ShardSet.open(data)
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{out.name}.", dir=out.parent) as partial:
        new = Path(partial) / "atlas"
        new.mkdir()
        if isinstance(shards, Pair):
            file = Path(partial) / "embeddings.parquet"
            join(files, shards, file)
        by_head = clusters is None and names_clusters(open_embeddings(file))
        work = Path(partial) if beside is not None else new
        named = file if by_head else cluster(file, work, clusters, say=say)
        there = int((count(open_clusters(named)) > 0).sum())
        show = 9 if there <= 1000 else 6 if there <= 4000 else 4
        found = read_clusters(file, shards, labels, asked, named)
        on_map = shown(found, shards, pictures, show, labels, TILE)
        names, both = [named if by_head else out / named.name], None
        if isinstance(shards, Pair):
            both = parts(file, named, sampled(open_embeddings(file), SAMPLE), new)
            names = [out / name for name in NAMES]
            if not by_head:
                (work / CENTROIDS).rename(new / CENTROIDS)
            on_map.columns.insert(0, both.column(on_map.rows, _short(sets)))
        played = _draw(shards, found, on_map, show, new)
        _draw_asked(search, new)
        used = sorted({*found.rows.shard, *(at[1] for at in (both.copy if both else ()) if at)})
        with_keys = found.images <= KEYS
        if with_keys:
            for own, folder in zip([new / name for name in NAMES] if both else [named], KEY_LISTS, strict=False):
                write_all_keys(own, new / folder)
        about = _about(found, on_map, [file.name for file in search]) | {
            "played": played,
            "named_by": "head" if by_head else "k-means", "by": "label" if labels else "domain", "show": show,
            "shards": [split_path(path) if both else (0, path) for path in used], "keys": with_keys,
            "parts": both.count[found.cluster].ravel().tolist() if both else None,
            "sets": [{"data": url, "name": name, "names": str(own), "keys": folder}
                     for url, name, own, folder in zip(sets, _short(sets), names, KEY_LISTS, strict=False)],
        }  # fmt: skip
        _write_script(new / "data.js", "const ATLAS = {};\n", about)
        _write_points(on_map, new / "points.js")
        _write_images(found, on_map, used, both, new / "images")
        page = (
            environment()
            .get_template("atlas.html")
            .render(
                name=run.name,
                style=style(),
                own_style=asset("atlas.css"),
                script=asset(*SCRIPTS),
            )
        )
        (new / "index.html").write_text(page, "utf-8")
        shutil.rmtree(out, ignore_errors=True)
        new.rename(out)
    return out / "index.html"


def _embedded(run: Path, data: str, file: Path, say: Callable[[str], None]) -> Path:
    """``file``, the embeddings of a set, made where it is not there."""
    if file.exists():
        check_set(file, data)
    else:
        embed(run, data, file, say=say)
    return file


def _short(sets: Sequence[str]) -> list[str]:
    """What sets are called: the last part of their place, or all of it where two are called the same."""
    last = [url.rstrip("/").rpartition("/")[2] for url in sets]
    return last if len(set(last)) == len(last) else list(sets)


def default_data(run: Path) -> str:
    """The shard set that a run was trained on."""
    return open_data_of(run).store.url


def _about(found: Clusters, on_map: Shown, asked: list[str]) -> dict[str, Any]:
    """Columns of numbers, which stay small for 16,000 clusters; images are by their number on the map."""
    number = dict(zip(on_map.rows.tolist(), range(len(on_map.rows)), strict=True))

    def short(column: npt.NDArray[Any]) -> list[float]:
        return [round(value, 4) for value in column.tolist()]

    def images(rows: list[int]) -> list[int]:
        return [number[row] for row in rows]

    return {
        "images": found.images, "clusters": found.named, "empty": found.empty, "sampled": len(found.rows.key),
        "side": SIDE, "tile": TILE, "levels": on_map.levels, "chunk": CHUNK,
        "cells": (on_map.cell.max(0) + 1).tolist(), "start": on_map.start.tolist(),
        "cluster": found.cluster.tolist(), "size": found.size.tolist(), "title": on_map.title,
        "cohesion": short(found.cohesion), "repeated": short(found.repeated), "disc": short(on_map.disc.ravel()),
        "near": found.near.tolist(),
        "group": [name for name, _ in found.group], "share": [round(share, 3) for _, share in found.group],
        "outliers": images(found.outliers), "repeats": [[times, images(rows)] for times, rows in found.repeats],
        "asked": [[name, images(rows), homes] for name, (rows, homes) in zip(asked, found.asked, strict=True)],
        "columns": [{"id": column.id, "names": column.names, "ends": column.ends} for column in on_map.columns],
    }  # fmt: skip


def _draw(shards: ShardSet, found: Clusters, on_map: Shown, show: int, out: Path) -> dict[int, str]:
    """The map's tiles, the column that needs their pixels, and what images play: all of a few, else those of the
    page's lists. The file's extension of each of these, by its number on the map."""
    samples = numbers_of(shards, [found.rows.shard[row] for row in on_map.rows.tolist()], found.rows.index[on_map.rows])
    number = dict(zip(on_map.rows.tolist(), range(len(on_map.rows)), strict=True))
    listed = {number[row] for rows in (found.outliers, *(rows for _, rows in found.repeats)) for row in rows}
    typical = {image for first, stop in pairwise(on_map.start.tolist()) for image in range(first, stop)[:show]}
    everything = range(len(on_map.rows) if len(on_map.rows) <= PLAYED else 0)
    player = Player(out / "clips", {*typical, *listed, *everything})
    pictures = small_pictures(shards, samples.tolist(), out, player)
    on_map.columns.append(numbers("brightness", brightness(pictures), lambda value: f"{value:.0%}"))
    draw_tiles(pictures, on_map.cell, on_map.top, on_map.levels, out / "tiles")
    return player.kinds


def _draw_asked(search: Sequence[Path], out: Path) -> None:
    if search:
        sheet = Image.new("RGB", (SIDE, len(search) * SIDE))
        for down, file in enumerate(search):
            sheet.paste(thumbnail(file.read_bytes(), SIDE), (0, down * SIDE))
        sheet.save(out / "asked.jpg", quality=85)


def _write_script(file: Path, around: str, value: Any) -> None:
    """``value`` in the place of {} of a line of JavaScript."""
    file.write_text(around.replace("{}", json.dumps(value, separators=(",", ":"))), "utf-8")


def _write_points(on_map: Shown, file: Path) -> None:
    def packed(column: npt.NDArray[Any]) -> str:
        return base64.b64encode(column.tobytes()).decode()

    x, y = on_map.cell.astype("<u2").T
    columns: list[Column] = on_map.columns
    points = {"x": packed(x), "y": packed(y), "top": packed(on_map.top)} | {
        f"by_{column.id}": packed(column.level) for column in columns
    }
    _write_script(file, "ATLAS.points = {};\n", points)


def _write_images(found: Clusters, on_map: Shown, shards: list[str], both: Parts | None, folder: Path) -> None:
    folder.mkdir()
    place = {path: number for number, path in enumerate(shards)}
    for number, first in enumerate(range(0, len(on_map.rows), CHUNK)):
        rows = on_map.rows[first : first + CHUNK].tolist()
        columns = {
            "key": [found.rows.key[row] for row in rows], "shard": [place[found.rows.shard[row]] for row in rows],
            "group": [found.groups[row] for row in rows], "text": on_map.text[first : first + CHUNK],
        }  # fmt: skip
        if both is not None:
            columns["copy"] = [None if (at := both.copy[row]) is None else [at[0], place[at[1]]] for row in rows]
        _write_script(folder / f"{number:03d}.js", f"ATLAS.arrived({number}, {{}});\n", columns)


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
