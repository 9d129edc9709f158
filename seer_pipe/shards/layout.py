"""Names, columns and versions of what a shard set is made of."""

from __future__ import annotations

import posixpath
from pathlib import PurePosixPath

import pyarrow as pa

FORMAT_VERSION = 1
VERSION_KEY = b"seer_pipe.format_version"
MANIFEST = "manifest.parquet"
SIDECAR = "sidecar"  # column of the manifest, where sidecars are not beside their tars
EXCLUDED = "excluded.parquet"
MEDIA_KEY = b"seer_pipe.media"  # in the manifest: what the samples are; images where it does not say
HOLDS = {"image": "images", "video": "video clips", "audio": "audio clips", "pair": "pairs of pictures"}
PAIR = ("0.jpg", "1.jpg")  # the pictures of a pair, by their extensions
FINGERPRINT_KEY = b"seer_pipe.fingerprint"  # of the set that the numbers in EXCLUDED are of

MANIFEST_SCHEMA = pa.schema(
    [("path", pa.string()), ("samples", pa.int64()), ("bytes", pa.int64()), ("sha256", pa.string())]
)
#: Columns that every sidecar has; a source adds its own (url, caption, …) after them.
SIDECAR_SCHEMA = pa.schema(
    [
        ("key", pa.string()),
        ("source", pa.string()),  # path or URL that the image came from
        ("offset", pa.int64()),  # of the sample's first byte in the tar: the image's, or that of a run's first header
        ("length", pa.int64()),  # bytes
        ("crc32c", pa.uint32()),
        ("width", pa.int32()),  # pixels, as stored (upright)
        ("height", pa.int32()),
        ("sha256", pa.string()),  # of the stored bytes, hex; see content_sha256
        ("phash", pa.uint64()),  # perceptual hash; null where not computed
    ]
)
CAPTIONS = ("txt", "caption")  # columns of a source that are the text beside an image, where they are text
REJECTED_SCHEMA = pa.schema([("source", pa.string()), ("reason", pa.string()), ("detail", pa.string())])


def sidecar_path(tar: str) -> str:
    return posixpath.splitext(tar)[0] + ".parquet"


def rejected_path(tar: str) -> str:
    return f"rejected/{PurePosixPath(tar).stem}.parquet"


def is_elsewhere(path: str) -> bool:
    """Whether the ``path`` of a manifest leads out of the set's own store."""
    return path.startswith("/") or "://" in path
