"""K-means of a file of embeddings, for weights whose objective names no clusters.

FOLDER/clusters.parquet       key, shard, index, cluster, confidence; rows and row groups are those of the embeddings
FOLDER/centroids.safetensors  [K, width], and the SHA-256 of the weights that the features are of
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch import Tensor

from seer_pipe.distributed.kmeans import kmeans, nearest
from seer_pipe.errors import UserError
from seer_pipe.evaluate.embeddings import CLUSTERS, open_embeddings, sampled, unit_features, weights_of
from seer_pipe.export.weights import read_weights, write_weights

ITERATIONS = 20
SAMPLE, PER_CLUSTER = 1 << 18, 256  # images that centroids are found on: the larger of these; and 256 as in faiss
MEMORY = 2 << 30  # bytes of their features in float16, at most
MOST = 16_000  # clusters by default


def default_clusters(images: int) -> int:
    """The square root of the number of images, at most MOST: as many clusters as images in each."""
    return max(2, min(MOST, round(images**0.5)))


def cluster(
    file: Path, folder: Path, clusters: int | None = None, *, say: Callable[[str], None] = lambda _: None
) -> Path:
    """Cluster the images of a file of embeddings by the cosine of their features; the path of clusters.parquet.

    Centroids are found on a sample, whole row groups spread evenly over the file, which memory holds; then each image
    falls to the nearest, a row group at a time. ``confidence`` is the cosine to it.
    """
    data = open_embeddings(file)
    images = data.metadata.num_rows
    clusters = clusters or default_clusters(images)
    if clusters > images:
        raise UserError(f"{file}: {clusters} clusters are more than its {images} images; give fewer by --clusters")
    device = "cuda" if torch.cuda.is_available() else "cpu"
    width = data.schema_arrow.field("feature").type.list_size
    rows = min(MEMORY // (2 * width), max(SAMPLE, PER_CLUSTER * clusters))
    parts = [unit_features(data.read_row_group(group, ["feature"])).half() for group in sampled(data, rows)]
    sample = torch.cat(parts).to(device)
    say(f"k-means: {clusters} clusters of {images} images, found on {len(sample)}")
    try:
        centroids = kmeans(sample, clusters, seed=0, iterations=ITERATIONS).centroids
    except ValueError as error:
        raise UserError(f"{file}: {error}; are the weights sound?") from None
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(folder / "centroids.safetensors", {"centroids": centroids}, {"weights": weights_of(file)})
    schema = pa.schema([("key", pa.string()), ("shard", pa.string()), ("index", pa.int32()), ("cluster", pa.int32()),
                        ("confidence", pa.float32())], metadata={CLUSTERS: str(clusters)})  # fmt: skip
    with pq.ParquetWriter(folder / "clusters.parquet", schema, compression="zstd") as writer:
        for group in range(data.num_row_groups):
            table = data.read_row_group(group, ["key", "shard", "index", "feature"])
            found, cosine = nearest(unit_features(table).to(device), centroids)
            named = [pa.array(found.int().cpu().numpy()), pa.array(cosine.cpu().numpy())]
            writer.write_table(pa.table([*table.select(["key", "shard", "index"]).columns, *named], schema=schema))
    return folder / "clusters.parquet"


def read_centroids(atlas: Path, weights: str) -> Tensor:
    """The centroids [K, width] of an atlas whose clusters are by k-means of the features of these weights."""
    file = atlas / "centroids.safetensors"
    if not file.is_file():
        raise UserError(f"{atlas}: no atlas whose clusters are by k-means (no {file.name}); seer-pipe atlas makes it")
    tensors, about = read_weights(file)
    if about.get("weights") != weights:
        raise UserError(f"{atlas}: an atlas of other weights; draw it again with seer-pipe atlas")
    return tensors["centroids"]
