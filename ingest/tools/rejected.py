"""The rejected inputs of a shard set."""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from ingest.reasons import Reason
from seer_pipe.shards import ShardSet


def rejected_tables(shards: ShardSet) -> Iterator[pa.Table]:
    """The tables of ``REJECTED_SCHEMA``, one per unit of work. By the manifest: not every store can list its files."""
    return filter(None, map(shards.rejected, range(len(shards.paths))))


#: A line about each reason; what another version of the program wrote may have others.
EXPLANATIONS = {reason.value: reason.explanation for reason in Reason}
