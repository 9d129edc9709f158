"""The shard-set format: the contract between ``ingest`` and training.

    ROOT/manifest.parquet         one row per shard: path, samples, bytes, sha256; metadata: format version
    ROOT/00000.tar                USTAR WebDataset tar: KEY.jpg; or of a sample KEY.mp4, KEY.flac, KEY.json
    ROOT/00000.parquet            the sidecar, one row per sample, in the order of the tar
    ROOT/rejected/00000.parquet   a row a rejected input: source, reason, detail
    ROOT/excluded.parquet         where samples are excluded from training: one row each, by number in the set

A unit of work makes one shard. It is done when its sidecar is there: the tar is put first, then the rejected,
then the sidecar, each whole or not at all. The manifest is derived from the sidecars and can be written again.

A sample of one member is that member's payload; one of several is the run of them as it stands in the tar, headers and
all, which `members_of` splits. So a sample is one range of bytes with one checksum, whatever it is.

A set may also index tars that someone else made. Then ``path`` is relative to ROOT or, for a tar that is elsewhere,
absolute or a URL, and the manifest's column ``sidecar`` says where in ROOT the sidecar is.
"""

from __future__ import annotations

from seer_pipe.shards.layout import (
    CAPTIONS,
    EXCLUDED,
    FINGERPRINT_KEY,
    FORMAT_VERSION,
    HOLDS,
    MANIFEST,
    MANIFEST_SCHEMA,
    PAIR,
    SIDECAR_SCHEMA,
    VERSION_KEY,
    is_elsewhere,
    rejected_path,
    sidecar_path,
)
from seer_pipe.shards.members import BLOCK, content_sha256, is_run, members_of, members_sha256, ustar_header
from seer_pipe.shards.sets import ShardIndex, ShardSet, store_at
from seer_pipe.shards.writer import Rejected, ShardWriter, beside, put_rejected, put_sidecar, to_parquet, write_manifest

__all__ = [
    "BLOCK",
    "CAPTIONS",
    "EXCLUDED",
    "FINGERPRINT_KEY",
    "FORMAT_VERSION",
    "HOLDS",
    "MANIFEST",
    "MANIFEST_SCHEMA",
    "PAIR",
    "SIDECAR_SCHEMA",
    "VERSION_KEY",
    "Rejected",
    "ShardIndex",
    "ShardSet",
    "ShardWriter",
    "beside",
    "content_sha256",
    "is_elsewhere",
    "is_run",
    "members_of",
    "members_sha256",
    "put_rejected",
    "put_sidecar",
    "rejected_path",
    "sidecar_path",
    "store_at",
    "to_parquet",
    "ustar_header",
    "write_manifest",
]
