"""K-means of the features of a shard set, by any weights.

FOLDER/embeddings.parquet     the features, where none were given (seer-pipe embed)
FOLDER/clusters.parquet       key, shard, index, cluster, confidence; rows and row groups are those of the embeddings
FOLDER/centroids.safetensors  [K, width], whether they are spherical, and the SHA-256 of the weights of the features
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from seer_pipe.distributed.kmeans import kmeans, nearest
from seer_pipe.distributed.world import World, join
from seer_pipe.errors import UserError
from seer_pipe.evaluate.centroids import FILE, Centroids
from seer_pipe.evaluate.embed import embed
from seer_pipe.evaluate.embeddings import (
    CLUSTERS,
    check_set,
    clusters_of,
    data_of,
    feature_map,
    features,
    open_clusters,
    open_embeddings,
    sampled,
    weights_of,
)
from seer_pipe.evaluate.subject import open_data_of
from seer_pipe.export.weights import write_weights

ITERATIONS = 20
SAMPLE, PER_CLUSTER = 1 << 18, 256  # images that centroids are found on: the larger of these; and 256 as in faiss
MAPPED = 1 << 30  # numbers of their features, at most
MOST = 16_000  # clusters by default
NAMED = pa.schema([("key", pa.string()), ("shard", pa.string()), ("index", pa.int32()), ("cluster", pa.int32()),
                   ("confidence", pa.float32())])  # fmt: skip
Say = Callable[[str], None]


def default_clusters(images: int) -> int:
    """The square root of the number of images, at most MOST: as many clusters as images in each."""
    return max(2, min(MOST, round(images**0.5)))


def embedded(source: Path, data: str | None, out: Path, say: Say) -> tuple[Path, str]:
    """A file of embeddings and the shard set that it is of: ``source`` itself, or what is made of it in folder ``out``.

    ``source``: a file of embeddings, or the folder of a run or an exported backbone. ``data``: the set; by default the
    one that the embeddings are of, or that the run was trained on.
    """
    if source.is_file():
        check_set(source, data)
        return source, data or data_of(source)
    if not source.is_dir():
        raise UserError(f"{source}: no such run, exported backbone or file of embeddings")
    if data is None and not (source / "config.yaml").is_file():
        raise UserError(f"{source}: not a run, so it does not say which shard set is meant; give the set too")
    data = data or open_data_of(source).store.url
    out.mkdir(parents=True, exist_ok=True)
    embed(source, data, out / "embeddings.parquet", say=say)
    return out / "embeddings.parquet", data


def cluster_set(
    source: Path,
    data: str | None,
    out: Path,
    clusters: int | None = None,
    *,
    spherical: bool = True,
    say: Say = lambda _: None,
) -> dict[str, Any] | None:
    """Cluster a shard set into folder ``out``, as `embedded` and `cluster` say; None but on the first rank."""
    with join() as world:
        file, _ = embedded(source, data, out, say)
        world.barrier()  # the first rank has put the parts together
        named = cluster(file, out, clusters, spherical=spherical, world=world, say=say)
        if not world.is_first:
            return None
        sizes = count(open_clusters(named))
        total = int((pq.read_schema(named).metadata or {})[CLUSTERS])
        return {
            "assignments": str(named), "images": int(sizes.sum()), "clusters": total,
            "empty": total - int((sizes > 0).sum()), "largest": int(sizes.max()),
        }  # fmt: skip


def cluster(
    file: Path,
    folder: Path,
    clusters: int | None = None,
    *,
    spherical: bool = True,
    world: World | None = None,
    say: Say = lambda _: None,
) -> Path:
    """Cluster the images of a file of embeddings; the path of clusters.parquet.

    Centroids are found on a sample, whole row groups spread evenly over the file, of which a piece at a time is in
    memory; then each image falls to the nearest, a row group at a time. Ranks share both. ``confidence`` is the cosine
    to it; where not ``spherical``, minus the squared distance.
    """
    if world is None:
        with join() as alone:
            return cluster(file, folder, clusters, spherical=spherical, world=alone, say=say)
    data = open_embeddings(file)
    images = data.metadata.num_rows
    clusters = clusters or default_clusters(images)
    if clusters > images:
        raise UserError(f"{file}: {clusters} clusters are more than its {images} images; give fewer by --clusters")
    width = data.schema_arrow.field("feature").type.list_size
    chosen = sampled(data, min(MAPPED // width, max(SAMPLE, PER_CLUSTER * clusters)))
    if world.is_first:
        folder.mkdir(parents=True, exist_ok=True)
        found_on = sum(data.metadata.row_group(group).num_rows for group in chosen)
        say(f"k-means: {clusters} clusters of {images} images, found on {found_on}")
    world.barrier()
    own = np.array_split(np.array(chosen), world.size)[world.rank].tolist()
    sample = feature_map(data, own, folder, unit=spherical).to(world.device)
    try:
        centroids = kmeans(sample, clusters, seed=0, iterations=ITERATIONS, spherical=spherical).centroids
    except ValueError as error:
        raise UserError(f"{file}: {error}; are the weights sound?") from None
    if world.is_first:
        about = {"weights": weights_of(file), "spherical": str(spherical)}
        write_weights(folder / FILE, {"centroids": centroids}, about)
    _assign(data, Centroids(centroids, spherical), folder / "clusters.parquet", world)
    return folder / "clusters.parquet"


def _assign(data: pq.ParquetFile, centroids: Centroids, out: Path, world: World) -> None:
    """Write the cluster of each image; every rank finds those of a row group in turn."""

    def rows(group: int) -> list[pa.Array]:
        table = data.read_row_group(group, ["feature"])
        found, score = nearest(
            features(table, unit=centroids.spherical).to(world.device), centroids.matrix, spherical=centroids.spherical
        )
        return [pa.array(found.int().cpu().numpy()), pa.array(score.cpu().numpy())]

    schema, partial = NAMED.with_metadata({CLUSTERS: str(len(centroids.matrix))}), out.with_name(f".{out.name}")
    writer = pq.ParquetWriter(partial, schema, compression="zstd") if world.is_first else None
    for start in range(0, data.num_row_groups, world.size):
        group = start + world.rank
        shares = world.gather(rows(group) if group < data.num_row_groups else None)
        if writer is not None:
            for number, named in enumerate(share for share in shares if share is not None):
                keys = data.read_row_group(start + number, ["key", "shard", "index"]).columns
                writer.write_table(pa.table([*keys, *named], schema=schema))
    if writer is not None:
        writer.close()
        partial.replace(out)


def count(naming: pq.ParquetFile) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Images of each cluster, all row groups."""
    sizes = np.zeros(0, np.int64)
    for cluster in clusters_of(naming):
        here = np.bincount(cluster, minlength=len(sizes))
        here[: len(sizes)] += sizes
        sizes = here
    return sizes
