"""Reading a file of embeddings, or of clusters, a row group at a time."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F

from seer_pipe.data.order import Ints
from seer_pipe.errors import UserError
from seer_pipe.shards import ShardSet

IDENTITY = b"seer_pipe.embeddings"  # in the file's metadata: SHA-256 of the weights, fingerprints of set and choice
DATA = b"seer_pipe.data"  # the shard set, as it was named
CLUSTERS = b"seer_pipe.clusters"  # how many there are, also without an image


def open_embeddings(file: Path) -> pq.ParquetFile:
    """A file of ``seer-pipe embed``; UserError where it is none, or has no image."""
    return _open(file, "embeddings", {"key", "shard", "index", "cluster", "feature"})


def open_clusters(file: Path) -> pq.ParquetFile:
    """A file that names the cluster of each image, of ``seer-pipe embed`` or an atlas's; UserError where it is none."""
    data = _open(file, "clusters", {"key", "shard", "cluster"})
    if not names_clusters(data):
        raise UserError(f"{file}: names no clusters; seer-pipe atlas makes some, and OUT/clusters.parquet names them")
    return data


def names_clusters(data: pq.ParquetFile) -> bool:
    return not any(
        data.read_row_group(group, ["cluster"])["cluster"].null_count for group in range(data.num_row_groups)
    )


def _open(file: Path, what: str, columns: set[str]) -> pq.ParquetFile:
    try:
        data = pq.ParquetFile(file)
    except (OSError, ValueError) as error:
        raise UserError(f"{file}: not a file of {what}: {error}") from None
    missing = columns - set(data.schema_arrow.names)
    if missing or data.metadata.num_rows == 0:
        raise UserError(f"{file}: not a file of {what}: lacks {', '.join(sorted(missing)) or 'images'}")
    return data


def weights_of(file: Path) -> str:
    """SHA-256 of the weights that a file of embeddings was made with; empty where it does not say."""
    return next(iter(_said(pq.read_schema(file), IDENTITY).split()), "")


def data_of(file: Path) -> str:
    """The shard set that a file of embeddings is of; UserError where it does not say."""
    found = _said(open_embeddings(file).schema_arrow, DATA)
    if not found:
        raise UserError(f"{file}: does not say which shard set it is of; give the set too")
    return found


def check_set(file: Path, data: str | None) -> None:
    """UserError where a file of embeddings says that it is of another shard set than ``data``."""
    words = _said(open_embeddings(file).schema_arrow, IDENTITY).split()
    if data is not None and len(words) > 1 and words[1] != ShardSet.open(data).fingerprint:
        raise UserError(f"{file}: embeddings of another shard set than {data}, or of this one before it changed")


def _said(schema: pa.Schema, what: bytes) -> str:
    """Of the metadata of a file; empty where it does not say."""
    return (schema.metadata or {}).get(what, b"").decode()


def sampled(data: pq.ParquetFile, images: int) -> list[int]:
    """Row groups, evenly over the file, that hold at most so many images; at least one group."""
    largest = max(data.metadata.row_group(group).num_rows for group in range(data.num_row_groups))
    wanted = min(data.num_row_groups, max(1, images // largest))
    return np.unique(np.linspace(0, data.num_row_groups - 1, wanted).astype(int)).tolist()


def features(table: pa.Table, *, unit: bool) -> torch.Tensor:
    """The features of a table of embeddings, [n, width] float32; of ``unit`` length, or as they are."""
    flat = table["feature"].combine_chunks().flatten().to_numpy()
    width = table.schema.field("feature").type.list_size
    found = torch.tensor(flat, dtype=torch.float32).view(table.num_rows, width)
    return F.normalize(found) if unit else found


def rows_of(data: pq.ParquetFile, rows: Ints, columns: list[str]) -> pa.Table:
    """These rows of a file, by their numbers, which rise; a row group at a time."""
    found = [data.schema_arrow.empty_table().select(columns)]
    start = 0
    for group in range(data.num_row_groups):
        stop = start + data.metadata.row_group(group).num_rows
        own = rows[np.searchsorted(rows, start) : np.searchsorted(rows, stop)] - start
        if len(own):
            found.append(data.read_row_group(group, columns).take(own))
        start = stop
    return pa.concat_tables(found)


def numbers_of(shards: ShardSet, shard: Sequence[str], index: Ints) -> Ints:
    """The numbers in the set of samples [n] by their shards' paths and their places there."""
    starts = dict(zip(shards.paths, shards.starts.tolist(), strict=False))
    return np.array([starts[path] for path in shard], np.int64) + index


def feature_map(data: pq.ParquetFile, groups: list[int], folder: Path, *, unit: bool) -> torch.Tensor:
    """The features of these row groups, [n, width], as a map of a nameless file in ``folder``, which goes with it.

    So memory holds what is in use. Float16 where of ``unit`` length, else float32.
    """
    kind = torch.float16 if unit else torch.float32
    rows = sum(data.metadata.row_group(group).num_rows for group in groups)
    shape = rows, data.schema_arrow.field("feature").type.list_size
    if rows == 0:
        return torch.empty(shape, dtype=kind)
    with tempfile.TemporaryFile(dir=folder) as file:
        for group in groups:
            found = features(data.read_row_group(group, ["feature"]), unit=unit).to(kind)
            file.write(found.numpy().tobytes())
        file.flush()
        whole = torch.from_numpy(np.memmap(file, np.uint8, "r+"))
    return whole.view(kind).view(shape)


def clusters_of(data: pq.ParquetFile, groups: list[int] | None = None) -> Iterator[Ints]:
    """The cluster of each image, a row group at a time, of all or of those."""
    for group in range(data.num_row_groups) if groups is None else groups:
        found: npt.NDArray[np.int32] = data.read_row_group(group, ["cluster"])["cluster"].to_numpy()
        yield found.astype(np.int64)
